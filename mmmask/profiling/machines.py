"""Machines that a run is forecast for: a table of published figures, and this machine's CPU, measured."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mmmask_registry import MmmaskError, UnknownName


@dataclass(frozen=True)
class Machine:
    """One accelerator of a node, or one process's share of a CPU.

    Attributes:
        memory: bytes.
        reserve: bytes of it that are not for the model: context, workspaces and buffers of libraries.
        peak: {precision: floating-point operations per second of dense matrix products}.
        efficiency: {precision: share of it that the products of a training step reach}.
        call: seconds in which an operator of PyTorch is launched, whatever it computes.
        bandwidth: bytes per second of its memory.
        nvlink: bytes per second that it sends to the others of its node while it receives as many.
        network: bytes per second that it sends to other nodes while it receives as many.
        link: share of these two that collectives reach.
        overlap: share of the compute that communication and reading can hide behind.
        cores: CPU cores for it.
        basis: where efficiency, call and link are from.
    """

    name: str
    memory: float
    reserve: float
    peak: dict[str, float]
    efficiency: dict[str, float]
    call: float
    bandwidth: float
    nvlink: float
    network: float
    link: float
    overlap: float
    cores: float
    basis: str


def _gpu(
    name: str, memory: float, bf16: float, fp32: float, bandwidth: float, nvlink: float, network: float, cores: int
) -> Machine:
    """A GPU by its data sheet: GiB, TFLOP/s, GB/s."""
    peak = {"bf16": bf16 * 1e12, "fp16": bf16 * 1e12, "fp32": fp32 * 1e12}
    return Machine(
        name, memory * 2**30, 2 * 2**30, peak, dict.fromkeys(peak, 0.6), call=6e-6, bandwidth=bandwidth * 1e9,
        nvlink=nvlink * 1e9, network=network * 1e9, link=0.8, overlap=1.0, cores=cores,
        basis="assumed: no GPU was measured",
    )  # fmt: skip


GPUS = {
    gpu.name: gpu
    for gpu in (
        #            GiB  bf16   fp32  memory NVLink network cores
        _gpu("a100-40", 40, 312, 19.5, 1555, 300, 25, 16),
        _gpu("a100", 80, 312, 19.5, 2039, 300, 25, 16),
        _gpu("h100", 80, 989, 67, 3350, 450, 50, 14),
        _gpu("h200", 141, 989, 67, 4800, 450, 50, 14),
        _gpu("b200", 180, 2250, 80, 8000, 900, 50, 14),
    )
}
"""SXM modules. Peaks are of dense products, fp32 without TF32; NVLink and network in one direction, half of what data
sheets add up. NVIDIA's data sheets and guides: A100 (nvidia-a100-datasheet-us-nvidia-1758950-r4), H100 Tensor Core GPU,
H200 Tensor Core GPU, HGX B200. Network and cores are those of DGX A100 (eight ports of 200 Gb/s, 2 x 64 cores), DGX
H100, H200 and B200 (eight ports of 400 Gb/s, 2 x 56 cores), an eighth for each GPU. Devices report their memory in GiB,
half a percent short of the data sheet's figure in GB (an H200 of 141 GB: 140.4 GiB)."""


CPU = {"fp32": 0.8, "bf16": 0.25}
"""Share of the matmul peak that the products of a training step reach on a CPU."""


def find_machine(name: str, processes: int, precision: str) -> Machine:
    """A machine by its name; `cpu` is this one, measured, divided among the processes of a node.

    Raises:
        UnknownName: there is no such machine.
        MmmaskError: a CPU's precision was never measured.
    """
    if name == "cpu":
        return _this_cpu(processes, precision)
    if name not in GPUS:
        raise UnknownName("GPU", name, [*GPUS, "cpu"])
    return GPUS[name]


def _this_cpu(processes: int, precision: str) -> Machine:
    """This machine's CPU: peak, memory and cores are its own; all else was measured on two cores, with gloo."""
    import torch  # not with the module: the command line names the GPUs without it

    from mmmask.model.memory import machine_memory
    from mmmask.profiling.bench import matmul_peak

    if precision not in CPU:
        raise MmmaskError(f"--gpu cpu: {precision} was never measured on a CPU: take bf16 or fp32")
    peak = matmul_peak(torch.device("cpu"), precision) / processes
    cores = os.cpu_count() or 1
    return Machine(
        "cpu", machine_memory() / processes, 0.4 * 2**30, {precision: peak}, {precision: CPU[precision]},
        call=1e-5, bandwidth=17e9 * cores / processes, nvlink=1.3e9, network=1.3e9, link=1.0, overlap=0.0,
        cores=cores / processes, basis="measured on two cores of a Xeon with AMX",
    )  # fmt: skip

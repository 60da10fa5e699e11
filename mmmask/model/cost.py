"""Cost of a step, counted on the meta device: parameters, tokens, floating-point operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmmask.experiment import Experiment
from mmmask.model.build import build_model
from mmmask.model.model import Model

BF16_ACTIVATIONS = 0.6
"""Measured share of what float32 keeps for backward, under autocast: 0.54 (ViT-B) to 0.64 (Swin-B). Not a half, as
residuals and the inputs of LayerNorms stay float32."""


@dataclass(frozen=True)
class StreamCost:
    """One sample of one stream.

    Attributes:
        grids: {part: token layout}.
        tokens, visible, predicted: numbers of tokens, of all parts and targets.
        forward_flops, training_flops: floating-point operations of matrix products, a multiply-add counted as two;
            training is forward and backward.
        recomputed_flops: of stages that run once more in backward; what a kernel recomputes is not counted.
        activation_bytes: kept from forward for backward, in float32.
        stage_bytes: the part of it that belongs to the stage which keeps most.
        operations: calls of PyTorch's operators in forward and backward of a batch, whatever its size.
    """

    grids: dict[str, tuple[int, ...]]
    tokens: int
    visible: int
    predicted: int
    forward_flops: int
    training_flops: int
    recomputed_flops: int
    activation_bytes: int
    stage_bytes: int
    operations: int


def parameters(model: Model) -> dict[str, int]:
    """Number of parameters of the whole model and of its parts, those without any left out."""
    parts: dict[str, nn.Module] = {"total": model, "encoder": model.encoder}
    for objective in model.objectives.values():
        parts |= objective.named_children()
    if model.teacher is not None:
        parts["teacher"] = model.teacher
    counts = {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}
    return {name: count for name, count in counts.items() if count}


def meta_model(experiment: Experiment, classes: Mapping[str, Mapping[str, Sequence[str]]] | None = None) -> Model:
    """Builds the model of an experiment without memory for its weights; arguments as of `build_model`."""
    with torch.device("meta"):
        return build_model(experiment, classes)


def stream_cost(model: Model, stream: str, batch: int = 2) -> StreamCost:
    """Counts one stream on a model from `meta_model`."""
    samples = {}
    for short, part in model.parts[stream].items():
        modality = model.modalities[part]
        dtype = torch.float32 if modality.spec.vocab_size is None else torch.int64
        samples[short] = torch.empty((batch, *modality.sample_shape), dtype=dtype, device="meta")
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    by_stage = [0]
    hooks = [
        hook
        for stage in model.stages
        for hook in (
            stage.register_forward_pre_hook(lambda *_: by_stage.append(-sum(kept.values()))),
            stage.register_forward_hook(lambda *_: by_stage.append(by_stage.pop() + sum(kept.values()))),
        )
    ]
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with FlopCounterMode(display=False) as forward, saving, _Calls() as called:
        plans = model.plan({stream: samples})  # maskers may ask the encoder
        output = model(plans=plans)
    for hook in hooks:
        hook.remove()
    everything = FlopCounterMode(display=False, custom_mapping=_CORRECTED)
    with everything, _BackwardFlops(display=False, custom_mapping=_CORRECTED) as backward, called:
        output.loss.backward()
    plan = next(iter(plans.values()))
    masks = [shown.mask for shown in plan.inputs.values()]
    flops, backward_flops = forward.get_total_flops(), backward.get_total_flops()
    return StreamCost(
        grids={part: tuple(plan.tokens[part].grid) for part in model.parts[stream].values()},
        tokens=sum(mask.masked.shape[1] for mask in masks),
        visible=sum(mask.visible.shape[1] for mask in masks),
        predicted=sum(part.mask.predicted.shape[1] for part in output.streams.values()),
        forward_flops=flops // batch,
        training_flops=(flops + backward_flops) // batch,
        recomputed_flops=(everything.get_total_flops() - backward_flops) // batch,
        activation_bytes=sum(kept.values()) // batch,
        stage_bytes=max(by_stage) // batch,
        operations=called.count,
    )


class _Calls(TorchDispatchMode):
    """Counts calls of operators."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        self.count += 1
        return func(*args, **(kwargs or {}))


class _BackwardFlops(FlopCounterMode):
    """Operations of a backward; what it recomputes runs with gradients, and is left out."""

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:  # noqa: ANN401 - torch's own
        return out if torch.is_grad_enabled() else super()._count_flops(func_packet, out, args, kwargs)


Shape = list[int]


def _convolution_backward(grad_shape: Shape, inputs: Shape, kernel: Shape, *settings: Any, **_: object) -> int:  # noqa: ANN401
    """Two convolutions as dear as the forward one: for inputs and for the kernel, each where it is wanted."""
    output_mask = settings[-1]  # which gradients are wanted; before it strides and the like
    forward = 2 * math.prod(grad_shape) * math.prod(kernel[1:])  # kernel (out, in / groups, *extent)
    return forward * sum(output_mask[:2])


# torch 2.13 counts the backward of a grouped convolution as if it had one group
_CORRECTED = {torch.ops.aten.convolution_backward: _convolution_backward}

"""Times mmmask's attention against `scaled_dot_product_attention`, forward and backward.

    python benchmarks/attention.py [--threads 2] [--dtype float32] [--repeats 10] [--cpu-time] [SHAPE ...]

A shape is BATCH,TOKENS,HEADS,HEAD_DIM. The two run in turn, so that whatever else the machine does meets both; medians
are printed. `--cpu-time` with one thread counts the thread's own seconds, which other processes hardly disturb.
`share` is the model's six matrix products as a share of what a product of 2048 x 2048 reaches in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from mmmask.model.attention import attention

CASES = {
    (8, 1568, 16, 24): "OmniMAE ViT-B, decoder, clips",
    (32, 196, 16, 24): "OmniMAE ViT-B, decoder, images",
    (32, 20, 12, 64): "OmniMAE ViT-B, encoder, images 90 % masked",
    (8, 79, 12, 64): "OmniMAE ViT-B, encoder, clips 95 % masked",
    (32, 197, 16, 32): "MAE, decoder",
    (4, 1568, 6, 64): "VideoMAE ViT-B, decoder",
    (4, 1568, 12, 64): "ViT-B on whole clips",
}


def library(qkv: Tensor) -> Tensor:
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def measure(
    shape: tuple[int, ...], dtype: torch.dtype, repeats: int, clock: Callable[[], float]
) -> dict[str, tuple[float, float, float]]:
    """Median seconds of forward, backward and both, by name; `peak` is of the matrix product."""
    batch, tokens, heads, head_dim = shape
    qkv = torch.randn(batch, tokens, 3, heads, head_dim, dtype=dtype, requires_grad=True)
    grad = torch.randn(batch, tokens, heads * head_dim, dtype=dtype)
    square = torch.randn(2048, 2048, dtype=dtype)
    times: dict[str, list[tuple[float, float, float]]] = {"peak": [], "library": [], "mmmask": []}
    for repeat in range(repeats + 1):
        started = clock()
        square @ square  # noqa: B018
        row = {"peak": (0.0, 0.0, clock() - started)}
        for name, function in (("library", library), ("mmmask", attention)):
            started = clock()
            out = function(qkv)
            between = clock()
            torch.autograd.grad(out, qkv, grad)
            ended = clock()
            row[name] = (between - started, ended - between, ended - started)
        for name, seconds in row.items():
            if repeat:  # the first one warms up
                times[name].append(seconds)
    return {name: tuple(map(statistics.median, zip(*rows, strict=True))) for name, rows in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", help="BATCH,TOKENS,HEADS,HEAD_DIM")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    shapes = [tuple(map(int, shape.split(","))) for shape in options.shapes] or list(CASES)
    print(f"{options.dtype}, {options.threads} threads, milliseconds (forward + backward = both)")
    for shape in shapes:
        repeats = options.repeats if shape[1] > 400 else options.repeats * 5
        clock = time.thread_time if options.cpu_time else time.perf_counter
        found = measure(shape, getattr(torch, options.dtype), repeats, clock)
        batch, tokens, heads, head_dim = shape
        flops = 6 * 2 * batch * heads * tokens**2 * head_dim
        peak = 2 * 2048**3 / found["peak"][2]
        print(f"\n{shape} {CASES.get(shape, '')}")
        for name in ("library", "mmmask"):
            forward, backward, both = found[name]
            print(
                f"  {name:8} {1e3 * forward:8.2f} + {1e3 * backward:8.2f} = {1e3 * both:8.2f}"
                f"  x{found['library'][2] / both:.2f}  share {flops / both / peak:.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()

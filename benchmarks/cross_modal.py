"""Error of one part of samples predicted from another, in its unit, against the mean of the training samples.

python benchmarks/cross_modal.py runs/nyuv2 rooms rgb depth
"""

from __future__ import annotations

import sys

import torch

import mmmask
from mmmask.data.streams import sample_loader
from mmmask.interfaces import Batch


@torch.no_grad()
def main(folder: str, stream: str, given: str, predicted: str) -> None:
    """Prints mean absolute and root mean square errors on all held-out samples, over values that are present."""
    run = mmmask.load_run(folder)
    model = run.model.eval()
    part = model.parts[stream][predicted]
    train, test = (sample_loader(run.experiment, stream, held_out=held_out) for held_out in (False, True))

    def raw(content: torch.Tensor) -> torch.Tensor:
        return model.tokenize(part, content).raw().float()

    seen = torch.cat([raw(train.plain(index).parts[predicted][None]) for index in range(len(train.source))])
    guesses = {"mean of all": seen.nanmean(), "mean of each place": seen.nanmean(0)}
    errors: dict[str, list[torch.Tensor]] = {}
    for first in range(0, len(test.source), 16):
        batch = Batch.of([test.plain(index) for index in range(first, min(first + 16, len(test.source)))])
        visible = torch.zeros_like(model.tokenize(model.parts[stream][given], batch.parts[given]).content[..., 0])
        plans = model.plan({stream: batch}, {stream: {given: visible.bool()}})
        (plan,) = plans.values()
        output = model(plans=plans).streams[f"{stream}/{predicted}"]
        answers = model.objective(stream).restore(plan, f"{stream}/{predicted}", output.predictions)
        truth = raw(batch.parts[predicted])
        for name, guess in {f"from {given}": answers, **guesses}.items():
            difference = guess - truth
            errors.setdefault(name, []).append(difference[difference.isfinite()])
    for name, parts in errors.items():
        error = torch.cat(parts)
        print(f"{name:20} mean absolute {error.abs().mean():.4f}  root mean square {error.square().mean().sqrt():.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""How much of a step's counted predictions each of its micro-batches holds."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmmask.data.streams import MicroStep
from mmmask.model.masked_model import MaskedModel
from mmmask.training.distribution import Processes

Shares = dict[str, float]
"""{stream: counted predictions of a micro-batch over their mean of all micro-batches of the step}."""


@torch.no_grad()
def counted_shares(
    model: MaskedModel, micro_steps: Sequence[MicroStep], step: int, processes: Processes
) -> list[Shares]:
    """A factor for the loss of every micro-batch and stream whose number of counted predictions varies.

    With a decoder masker some predicted tokens are visible and do not count, more in one sample than in another. A
    micro-batch divides by its own number; the factors make their mean what the whole global batch gives, however it is
    spread over processes and micro-batches. All other streams count alike everywhere and are left out.
    """
    varying = [name for name in micro_steps[0].batches if model.streams[name].decoder_masker]
    if not varying or len(micro_steps) * processes.world_size == 1:
        return [{} for _ in micro_steps]
    counts = []
    for micro in micro_steps:
        tokens = {name: model.tokenize(name, micro.batches[name].content) for name in varying}
        masks = model.draw_masks(tokens, {}, step, micro.shard)
        counts.append({name: float(mask.counted.sum()) for name, mask in masks.items()})
    everywhere = [part for parts in processes.gather(counts) for part in parts]
    means = {name: sum(part[name] for part in everywhere) / len(everywhere) for name in varying}
    return [{name: part[name] / means[name] if means[name] else 1.0 for name in varying} for part in counts]

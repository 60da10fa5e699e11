"""Encoder: turns the visible tokens of all streams of a step into latents."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmmask.interfaces.component import Component
from mmmask.interfaces.tokens import Embedding, EncoderInput, Latents
from mmmask_registry import MmmaskError


class Encoder(Component, nn.Module):
    """Owns embeddings, its positions, prefix tokens, an in-place mask token and the final norm.

    Built with `embeddings`, {embedding key: Embedding} in the experiment's order.

    Parts of one sample are encoded in one attention, their tokens numbered part after part. An encoder that takes one
    asks for `EncoderInput.part`, which refuses several.

    Every parameter takes part in every joint step: training on several processes stops with an error where one gets no
    gradient. Only with `alternate` mixing may a step leave out what belongs to other streams.

    A module within it names parameters that should not decay, biases apart, in an attribute `no_weight_decay`. One
    whose parameters depend on grids or settings may have a method `weights_from`, as `Positions` do, which takes the
    module of the same place in another encoder. Embeddings are `embeddings.KEY`; names of all else that belongs to an
    embedding key contain it too.
    """

    def __init__(self, config: Any, embeddings: Mapping[str, Embedding]) -> None:  # noqa: ANN401
        nn.Module.__init__(self)
        self.config = config

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of the latents."""

    @property
    @abstractmethod
    def stages(self) -> Sequence[nn.Module]:
        """Units of depth in the order of computation, such as the blocks of a ViT.

        Layer-wise learning rates, partial fine-tuning, sharding and compilation go by them. A stage is called as a
        module, never bypassed, and draws no noise itself: it takes tensors, so that it can be compiled and recomputed.
        """

    def by_depth(self) -> list[list[nn.Module]]:
        """Modules by depth, for layer-wise learning rates and partial fine-tuning.

        One list for each stage: the stage, and what belongs to its depth besides, such as a merging after it or
        positions of its own. Then what follows the last one, such as the final norm. Whatever is in none of the lists
        lies before the stages, such as embeddings. By default there is nothing but stages.

        A stage may name the modules of its second half, the MLP of a transformer's block, in an attribute
        `second_half`; it can then be trained without the first one.
        """
        return [*([stage] for stage in self.stages), []]

    @abstractmethod
    def forward(self, inputs: Sequence[EncoderInput], stages: Sequence[int] = ()) -> list[Latents]:
        """Latents of every input, in order.

        Args:
            inputs: one for each stream.
            stages: numbers of the stages whose outputs are wanted as `Latents.stages`.
        """

    def feature_maps(self, inputs: Sequence[EncoderInput]) -> list[list[Tensor]]:
        """Features of every input laid out on grids, finest first: (batch, channels, *grid of that resolution) each.

        By default the latents alone; an encoder of several resolutions gives one map for each.

        Raises:
            MmmaskError: something is masked, and tokens are missing from the grid.
        """
        maps = []
        for own, latents in zip(inputs, self(inputs), strict=True):
            if latents.values.shape[1] < own.mask.masked.shape[1]:
                raise MmmaskError("feature maps need all tokens: mask nothing")
            maps.append([latents.values.transpose(1, 2).unflatten(2, own.part.tokens.grid)])
        return maps

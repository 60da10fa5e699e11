"""A decoder that answers from what the encoder made of the predicted tokens themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import Field
from torch import Tensor, nn

from mmmask.builtins.transformer import TransformerSettings
from mmmask.interfaces import Component, Decoder, DecoderInput, Embedding, Positions, gather_rows
from mmmask.model.blocks import initialize
from mmmask_registry import MmmaskError


class InPlaceDecoder(Decoder):
    """Features are the latents of the predicted tokens, after as many blocks over all latents as wanted.

    Without blocks this is SimMIM's: its head alone answers (section 3.4). With blocks it is the decoder of MAE's
    ablation "encoder with mask token" (table 1c). Either way the encoder keeps the masked tokens, in place.
    """

    class Config(TransformerSettings):
        width: int = Field(default=512, gt=0, description="width inside the blocks, if there are any")
        depth: int = Field(default=0, ge=0, description="blocks over all latents; 0: the head answers from latents")
        num_heads: int = Field(default=16, gt=0, description="attention heads; must divide width")

    config: Config

    def __init__(self, config: Component.Config, embeddings: Mapping[str, Embedding], latent_width: int) -> None:
        super().__init__(config, embeddings, latent_width)
        settings = self.config
        self._width = settings.width if settings.depth else latent_width
        if not settings.depth:
            return
        self.embed = nn.Linear(latent_width, settings.width)
        self.blocks = settings.build_blocks()
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_epsilon)
        initialize(self)
        self.positions = nn.ModuleDict(
            {key: settings.build_positions(embedding, settings.width) for key, embedding in embeddings.items()}
        )

    @property
    def width(self) -> int:
        """Width of the features."""
        return self._width

    def forward(self, queries: Sequence[DecoderInput]) -> list[Tensor]:
        """Features (batch, predicted, width) of every query.

        Raises:
            MmmaskError: the encoder left masked tokens out.
        """
        if any(query.latents.index is not None for query in queries):
            raise MmmaskError(
                "model.decoder: 'in_place' answers from the latents of masked tokens, and this encoder leaves them "
                "out: set model.encoder.masked_tokens=replace, or choose the decoder 'transformer'"
            )
        features = [query.latents.values for query in queries]
        if self.config.depth:
            features = [
                self._add_positions(self.embed(part), query) for part, query in zip(features, queries, strict=True)
            ]
            biases = [self._positions(query).bias(query.grid, None) for query in queries]
            features = [self.norm(part) for part in self.blocks(features, biases)]
        return [gather_rows(part, query.mask.predicted) for part, query in zip(features, queries, strict=True)]

    def compile(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as nn.Module.compile
        """Compiles the blocks."""
        if self.config.depth:
            self.blocks.compile(*args, **kwargs)

    def _add_positions(self, rows: Tensor, query: DecoderInput) -> Tensor:
        positions = self._positions(query)(query.grid)
        return rows if positions is None else rows + positions

    def _positions(self, query: DecoderInput) -> Positions:
        return cast(Positions, self.positions[query.key])

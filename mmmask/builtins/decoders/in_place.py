"""A decoder that answers from what the encoder made of the predicted tokens themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor, nn

from mmmask.builtins.transformer import TransformerSettings, placed
from mmmask.interfaces import Component, Decoder, DecoderInput, Embedding, gather_rows
from mmmask.model.blocks import Blocks, initialize
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
        self.blocks = Blocks(settings)
        self.norm = nn.LayerNorm(settings.width, eps=settings.norm_epsilon)
        initialize(self)
        self.positions = settings.positions_by_key(embeddings, settings.width)

    @property
    def width(self) -> int:
        """Width of the features."""
        return self._width

    @property
    def stages(self) -> Sequence[nn.Module]:
        """The blocks, if there are any."""
        return list(self.blocks) if self.config.depth else []

    def forward(self, inputs: Sequence[DecoderInput]) -> list[Tensor]:
        """Features (batch, predicted, width) of every input.

        Raises:
            MmmaskError: the encoder left masked tokens out, or there are blocks, and several parts of a sample.
        """
        if any(own.latents.index is not None for own in inputs):
            raise MmmaskError(
                "model.decoder: 'in_place' answers from the latents of masked tokens, and this encoder leaves them "
                "out: set model.encoder.masked_tokens=replace, or choose the decoder 'transformer'"
            )
        if self.config.depth and any(len(own.parts) > 1 for own in inputs):
            raise MmmaskError(
                "model.decoder: 'in_place' with blocks takes one modality per stream: set model.decoder.depth=0, or "
                "choose the decoder 'transformer'"
            )
        if self.config.depth:
            embedded = [placed(self.embed(own.latents.values), self.positions, own.key, own.grid) for own in inputs]
            tokens, biases = [x for x, _ in embedded], [bias for _, bias in embedded]
            recomputed = [own.activation_checkpointing for own in inputs]
            outputs, _ = self.blocks(tokens, biases, [own.noise for own in inputs], recomputed=recomputed)
            features = [self.norm(x) for x in outputs]
        else:
            features = [own.latents.values for own in inputs]
        return [gather_rows(x, own.first + own.mask.predicted) for x, own in zip(features, inputs, strict=True)]

"""Base of every model: an encoder, and the modalities of its samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmmask.interfaces import Encoder, EncoderInput, Latents, Modality, Part, Tokens, nothing_masked
from mmmask.model.tokenizing import tokenize, tokenize_all


class Backbone(nn.Module):
    """Features of whole samples: nothing masked, nothing drawn at random.

    Args:
        modalities: {stream: modality}.
        encoder: of all streams.
        settings: plain data that the model can be built from again.
    """

    def __init__(self, modalities: Mapping[str, Modality], encoder: Encoder, settings: Mapping[str, Any]) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.encoder = encoder
        self._plain_settings = dict(settings)

    def plain_settings(self) -> dict[str, Any]:
        """Plain data of an experiment without sources and training, or of `ClassifierSettings`."""
        return dict(self._plain_settings)

    def tokenize(self, stream: str, samples: Tensor) -> Tokens:
        """The samples of one stream as tokens; raises as `mmmask.model.tokenizing.tokenize`."""
        return tokenize(self.modalities, stream, samples)

    def encode(self, batch: Mapping[str, Tensor], stages: Sequence[int] = ()) -> dict[str, Latents]:
        """{stream: Latents}, values (batch, tokens, width) in token order.

        Args:
            batch: {stream: samples}.
            stages: numbers of the encoder's stages whose outputs are wanted as `Latents.stages`.

        Raises:
            MmmaskError: the batch is empty, some samples do not fit, or there is no such stage.
        """
        return dict(zip(batch, self.encoder(self._unmasked(batch), stages), strict=True))

    def feature_maps(self, batch: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Features laid out on grids, finest first: {stream: (batch, channels, *grid) each}.

        Raises:
            MmmaskError: the batch is empty, or some samples do not fit.
        """
        return dict(zip(batch, self.encoder.feature_maps(self._unmasked(batch)), strict=True))

    def _unmasked(self, batch: Mapping[str, Tensor]) -> list[EncoderInput]:
        """Encoder inputs with nothing masked, in the order of the batch."""
        inputs = []
        for name, tokens in tokenize_all(self.modalities, batch).items():
            mask = nothing_masked(len(tokens.content), tokens.grid, tokens.content.device)
            inputs.append(EncoderInput((Part(self.modalities[name].embedding, tokens),), mask))
        return inputs

"""An encoder with the modalities it was built for: what every model has."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from mmmask.interfaces import Encoder, Latents, Modality, Tokens
from mmmask.model.features import encode, feature_maps
from mmmask.model.tokenizing import tokenize


class Backbone(nn.Module):
    """Modalities by stream, and one encoder for all streams."""

    def __init__(self, modalities: Mapping[str, Modality], encoder: Encoder) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.encoder = encoder

    def tokenize(self, stream: str, samples: Tensor) -> Tokens:
        """The samples of one stream as tokens.

        Raises:
            UnknownName: there is no such stream.
            MmmaskError: the samples do not fit the modality.
        """
        return tokenize(self.modalities, stream, samples)

    def encode(self, batch: Mapping[str, Tensor]) -> dict[str, Latents]:
        """Features with nothing masked: {stream: Latents}, values (batch, tokens, width) in token order."""
        return encode(self.encoder, self.modalities, batch)

    def feature_maps(self, batch: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Features with nothing masked, laid out on grids, finest first: (batch, channels, *grid) each."""
        return feature_maps(self.encoder, self.modalities, batch)

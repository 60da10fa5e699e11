"""Base of the modalities of pictures and of clips."""

from __future__ import annotations

from mmmask.interfaces import Modality, TokenSpec
from mmmask_pixels.settings import PixelConfig, embedding_key, token_spec


class PixelModality(Modality):
    """Modality whose tokens are patches of pixels; the layout of a sample is left to the subclass."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__(config)
        self._spec = token_spec(config)

    @property
    def spec(self) -> TokenSpec:
        """Patch of pixels, raw values in [0, 1]."""
        return self._spec

    @property
    def embedding(self) -> str:
        """Shared with every picture and clip of the same patch size and channels, unless the settings name another."""
        return embedding_key(self.config)

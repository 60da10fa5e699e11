"""What the modalities of pictures and of clips have in common."""

from __future__ import annotations

from mmmask.interfaces import Modality, TokenSpec
from mmmask_pixels.settings import PixelConfig, embedding_key, token_spec


class PixelModality(Modality):
    """A modality whose tokens are patches of pixels; what a sample looks like is left to the subclass."""

    def __init__(self, config: PixelConfig) -> None:
        super().__init__(config)
        self._spec = token_spec(config)

    @property
    def spec(self) -> TokenSpec:
        """What a token is."""
        return self._spec

    @property
    def embedding(self) -> str:
        """Shared with every picture and clip of the same patch size and channels, unless the settings name another."""
        return embedding_key(self.config)

"""VideoMAE V2's published layout (OpenGVLab/VideoMAEv2): VideoMAE's, read with dual masking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import Field
from torch import Tensor

from mmmask_zoo.videomae import VideoMAEFormat, is_second, is_videomae


class VideoMAEV2Format(VideoMAEFormat):
    """VideoMAE V2's checkpoints. All but the giant's and those with cosine attention look like VideoMAE's: name it."""

    class Config(VideoMAEFormat.Config):
        decoder_mask_ratio: float = Field(
            default=0.5, ge=0.25, lt=1, description="share of the tokens that the decoder is not asked for"
        )

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether only V2 writes such a file."""
        return is_videomae(keys) and is_second(keys)

    def masks(self) -> dict[str, Any]:
        """Tubes masked from the encoder, running cells not asked of the decoder (section 3.2)."""
        ratio = cast(VideoMAEV2Format.Config, self.config).decoder_mask_ratio
        return super().masks() | {"decoder_masker": {"name": "running_cell", "mask_ratio": ratio}}

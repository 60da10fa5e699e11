"""MAE's published layout (facebookresearch/mae): timm's names for the encoder, `decoder_*` for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Written
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.layout import NORM_EPSILON, Layout
from mmmask_zoo.options import NormalizedTokens
from mmmask_zoo.pictures import PictureModel, PictureOptions, write_pictures
from mmmask_zoo.writing import Writing

LAYOUT = Layout()


class MAEOptions(PictureOptions):
    """Options of MAE's names, which are timm's too."""

    num_frames: int | None = Field(
        default=None, gt=0, description="inflates the model to clips of so many frames, and stills beside them"
    )
    tubelet: int = Field(default=2, gt=0, description="frames of a token, where it is inflated")
    normalize: NormalizedTokens = "token"


class MAEFormat(Format):
    """MAE's checkpoints: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

    `num_frames` makes the paper's baseline for clips of it: an image model inflated to tubelets.
    """

    class Config(MAEOptions):
        pass

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has a cls token, one table of positions, square patches and plain attention."""
        patch = f"{LAYOUT.patch}.weight"
        needed = (LAYOUT.cls_token, LAYOUT.positions, patch, "blocks.0.attn.qkv.weight")
        return all(key in keys for key in needed) and keys[patch].dim() == 4

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        model = inflatable(Conversion(self.config.name, state), LAYOUT, self.config, "an MAE")
        return model.classifier() if "head.weight" in state else model.pretraining()

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a masked model of pictures, or a classifier of the cls token or of the mean over patches.

        Raises:
            InteropError: the layout cannot say what the model is.
        """
        writing = Writing(self.config.name, settings, state)
        writing.require_statistics()
        write_pictures(writing, LAYOUT)
        return writing.finished()


def inflatable(
    conversion: Conversion, layout: Layout, options: MAEOptions, system: str, norm_epsilon: float = NORM_EPSILON
) -> PictureModel:
    """A file whose model may be inflated to clips.

    Raises:
        InteropError: a key is missing or of another shape, or tubelets do not fill the clips.
    """
    frames, tubelet = options.num_frames, options.tubelet
    if frames and frames % tubelet:
        raise conversion.error(f"num_frames {frames} is not a multiple of tubelet {tubelet}")
    clips = {"tubelet": tubelet, "num_frames": frames} if frames else {}
    return PictureModel(conversion, layout, options, system, norm_epsilon, **clips)

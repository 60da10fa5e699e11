"""MAE's published layout (facebookresearch/mae): timm's names for the encoder, `decoder_*` for the rest."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.layout import Layout, LayoutFormat
from mmmask_zoo.pictures import PictureOptions, read_pictures, write_pictures
from mmmask_zoo.writing import Writing

LAYOUT = Layout()


class MAEOptions(PictureOptions):
    """Options of MAE's names, which are timm's too."""

    num_frames: int | None = Field(
        default=None, gt=0, description="inflates the model to clips of so many frames, and stills beside them"
    )
    tubelet: int = Field(default=2, gt=0, description="frames of a token, where it is inflated")


class MAEFormat(LayoutFormat):
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

    def _read(self, conversion: Conversion) -> ForeignWeights:
        return read_pictures(conversion, LAYOUT, self.config, "an MAE", **clips(conversion, self.config))

    def _write(self, writing: Writing) -> None:
        writing.require_statistics()
        write_pictures(writing, LAYOUT)


def clips(conversion: Conversion, options: MAEOptions) -> dict[str, int]:
    """The clips to which a model is inflated, as `read_pictures` takes them; empty where it is not.

    Raises:
        InteropError: tubelets do not fill them.
    """
    frames, tubelet = options.num_frames, options.tubelet
    if frames and frames % tubelet:
        raise conversion.error(f"num_frames {frames} is not a multiple of tubelet {tubelet}")
    return {"tubelet": tubelet, "num_frames": frames} if frames else {}

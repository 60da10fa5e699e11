"""Masked models of pictures, and classifiers, in layouts like MAE's: its own, timm's, transformers' ViTMAE."""

from __future__ import annotations

from typing import Any

from mmmask.interfaces import ForeignWeights, Format
from mmmask.interop import HEADS
from mmmask_zoo.conversion import Conversion, Patches, embedding_key
from mmmask_zoo.layout import NORM_EPSILON, SHARED, Layout
from mmmask_zoo.options import DecoderNumHeads, FilesSize, MaskRatio, NumHeads
from mmmask_zoo.picture_positions import PicturePositions
from mmmask_zoo.writing import Writing

PUBLISHED_DECODER = {"width": 512, "depth": 8}
"""Of every published encoder."""


class PictureOptions(Format.Config):
    """Options of formats of pictures; `normalize` has another default in each."""

    size: FilesSize = None
    num_heads: NumHeads = None
    decoder_num_heads: DecoderNumHeads = 16
    mask_ratio: MaskRatio = 0.75
    normalize: str


def picture_stream(options: Any) -> dict[str, Any]:  # noqa: ANN401 - `PictureOptions`
    """Settings of a stream of pictures, but for its modality."""
    return {
        "masker": {"name": "random", "mask_ratio": options.mask_ratio, "round_down": "visible"},
        "loss": {"name": "pixels", "normalize": options.normalize, "unnormalize": False},
    }


class PictureModel:
    """A file in a layout like MAE's.

    Args:
        conversion: of the file.
        layout: its names.
        options: of the format.
        system: its name, for descriptions.
        norm_epsilon: of every LayerNorm.
        tubelet: frames of a token of the clips to which the model is inflated, None for pictures alone.
        num_frames: of these clips.
    """

    def __init__(
        self,
        conversion: Conversion,
        layout: Layout,
        options: PictureOptions,
        system: str,
        norm_epsilon: float = NORM_EPSILON,
        tubelet: int | None = None,
        num_frames: int = 0,
    ) -> None:
        self._conversion, self._layout, self._options, self._system = conversion, layout, options, system
        self._norm_epsilon, self._tubelet = norm_epsilon, tubelet
        self.patches = conversion.patches(f"{layout.patch}.weight", "height, width")
        tokens, channels = list(self.patches.size), self.patches.channels
        frames = num_frames // tubelet if tubelet else None
        self._positions = PicturePositions(conversion, layout.positions, tokens, options.size, frames=frames)
        self._modalities: dict[str, dict[str, Any]] = {"images": {"name": "image"}}
        if tubelet:
            tokens = [tubelet, *tokens]
            self.patches = Patches(self.patches.width, channels, self.patches.size, embedding_key(tokens, channels))
            self._modalities["videos"] = {"name": "video", "num_frames": num_frames}
        for modality in self._modalities.values():
            modality |= {"size": self._positions.size, "patch_size": tokens, "channels": channels}

    def pretraining(self, final_norm: bool = True) -> ForeignWeights:
        """A masked model; of a file without the decoder, with the published one's sizes."""
        layout, conversion, key = self._layout, self._conversion, self.patches.key
        decoder = layout.read_decoder(
            conversion,
            key,
            self._options.decoder_num_heads,
            PUBLISHED_DECODER,
            norm_epsilon=self._norm_epsilon,
            positions_at="decoder",
            positions=self._positions.read(layout.decoder_positions, f"{SHARED}.positions.{key}", num_prefix=0),
        )
        encoder = self._encoder(final_norm)
        if self._tubelet:
            self._inflate(f"{HEADS}.{key}.weight", 0, "repeated: each frame is predicted as the picture was")
            self._inflate(f"{HEADS}.{key}.bias", 0, "repeated: each frame is predicted as the picture was")
        stream = picture_stream(self._options)
        return conversion.finished(
            {
                "description": f"{self._system} checkpoint",
                "model": {"encoder": encoder, "decoder": decoder},
                "streams": {name: stream | {"modality": modality} for name, modality in self._modalities.items()},
            }
        )

    def classifier(self, pool: str = "prefix") -> ForeignWeights:
        """A classifier of the cls token after the final norm, or of the mean over patches, normalised."""
        layout, conversion = self._layout, self._conversion
        encoder = self._encoder(final_norm=not layout.is_pooled(conversion))
        description = f"{self._system} checkpoint, fine-tuned"
        return layout.read_classifier(conversion, description, encoder, self._modalities, pool, self._norm_epsilon)

    def _encoder(self, final_norm: bool) -> dict[str, Any]:
        layout, key = self._layout, self.patches.key
        encoder = layout.read_encoder(
            self._conversion,
            self.patches,
            self._options.num_heads,
            prefix_tokens=1,
            final_norm=final_norm,
            norm_epsilon=self._norm_epsilon,
            positions=self._positions.read(layout.positions, f"encoder.positions.{key}", num_prefix=1),
        )
        if self._tubelet:
            how = f"repeated over {self._tubelet} frames and divided by their number"
            self._inflate(f"encoder.embeddings.{key}.weight", 1, how, self._tubelet)
        return encoder

    def _inflate(self, own: str, axis: int, how: str, divisor: int = 1) -> None:
        """Repeats a tensor for every frame of a tubelet.

        An embedding is divided by their number, so that a still gives what its picture gave (I3D, Carreira and
        Zisserman 2017, section 2.1; the baseline of OmniMAE).
        """
        conversion = self._conversion
        if own in conversion.state:
            tensor, (foreign,) = conversion.state[own], conversion.origin[own]
            if tensor.dim() <= axis or not tensor.is_floating_point():
                raise conversion.error(f"{foreign}: shape {tuple(tensor.shape)} of {tensor.dtype} cannot be inflated")
            repeats = [self._tubelet or 1 if each == axis else 1 for each in range(tensor.dim())]
            how = "; ".join(filter(None, [conversion.converted.get(foreign), how]))
            conversion.convert(foreign, own, (tensor / divisor).repeat(repeats), how)


def write_pictures(writing: Writing, layout: Layout, pools: tuple[str, ...] = ("prefix",), **settings: Any) -> bool:  # noqa: ANN401 - as Writing.require_part
    """Writes a masked model of pictures, or a classifier, and returns whether it is a classifier.

    Args:
        pools: as `Layout.write_classifier`.
        settings: of encoder and decoder, as `Writing.require_part`.

    Raises:
        InteropError: the layout cannot say what the model is.
    """
    layout.write_encoder(writing, writing.patches("height", "width"), prefix_tokens=(1,), **settings)
    writing.written[layout.positions] = writing.position_table("encoder", 1)
    if layout.write_classifier(writing, pools):
        return True
    layout.write_decoder(writing, positions_at=("decoder",), **settings)
    # no position is added to the cls token, so its row is zero
    writing.written[layout.decoder_positions] = writing.position_table("decoder", 0, zeros=1)
    return False

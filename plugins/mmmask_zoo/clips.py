"""Masked models of clips, and classifiers, in layouts like VideoMAE's: its own, V2's, transformers'."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from mmmask.interfaces import ForeignWeights, Format
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.layout import NORM_EPSILON, Layout
from mmmask_zoo.options import DecoderNumHeadsOfWidth, MaskRatio, NormalizedChannels, NumFrames, NumHeads, Size
from mmmask_zoo.writing import Writing

DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
"""Width of a published decoder -> its attention heads, which no key tells."""
PUBLISHED_DECODERS = {384: (192, 4), 768: (384, 4), 1024: (512, 12), 1280: (640, 12), 1408: (512, 4)}
"""Width of a published encoder -> width and depth of its decoder; the base's for any other."""


class ClipOptions(Format.Config):
    """Options of formats of clips."""

    size: Size = 224
    num_frames: NumFrames = 16
    num_heads: NumHeads = None
    decoder_num_heads: DecoderNumHeadsOfWidth = None
    mask_ratio: MaskRatio = 0.9
    normalize: NormalizedChannels = "channel"


class ClipModel:
    """A file in a layout like VideoMAE's, whose positions are computed.

    Args:
        conversion: of the file.
        layout: its names.
        options: of the format.
        system: its name, for descriptions.
        norm_epsilon: of the LayerNorms.
        last_norm_epsilon: of the decoder's last LayerNorm, and of one after pooling.
    """

    def __init__(
        self,
        conversion: Conversion,
        layout: Layout,
        options: ClipOptions,
        system: str,
        norm_epsilon: float = NORM_EPSILON,
        last_norm_epsilon: float = NORM_EPSILON,
    ) -> None:
        self._conversion, self._layout, self._options, self._system = conversion, layout, options, system
        self._norm_epsilon, self._last_norm_epsilon = norm_epsilon, last_norm_epsilon
        self._patches = patches = conversion.patches(f"{layout.patch}.weight", "frames, height, width")
        self._positions = {"name": "flat_sinusoid", **trained_grid(conversion, options, patches.size)}
        pixels = {"size": options.size, "patch_size": list(patches.size), "channels": patches.channels}
        self._modality = {"name": "video", "num_frames": options.num_frames, **pixels}

    def pretraining(self, pooled: bool = False, unnormalize: bool = True, **masks: Any) -> ForeignWeights:  # noqa: ANN401 - settings
        """A masked model; of a file without the decoder, with the published one's sizes.

        Args:
            pooled: whether the encoder has no final norm.
            unnormalize: of the loss.
            masks: settings of the stream that say what is masked and predicted; by default tubes.
        """
        options, encoder = self._options, self._encoder(final_norm=not pooled)
        width, depth = PUBLISHED_DECODERS.get(self._patches.width, PUBLISHED_DECODERS[768])
        published = {"width": width, "depth": depth}
        decoder = self._layout.read_decoder(
            self._conversion,
            self._patches.key,
            options.decoder_num_heads,
            published | {name: encoder[name] for name in ("qkv_bias", "cosine_attention")},
            DECODER_HEADS,
            norm_epsilon=self._norm_epsilon,
            final_norm_epsilon=self._last_norm_epsilon,
            embed_bias=False,
            positions_at="decoder",
            positions=self._positions,
        )
        loss = {"name": "pixels", "normalize": options.normalize, "epsilon_inside": False, "unnormalize": unnormalize}
        stream = {
            "modality": self._modality,
            "masker": {"name": "tube", "mask_ratio": options.mask_ratio},
            "loss": loss,
        }
        return self._conversion.finished(
            {
                "description": f"{self._system} checkpoint",
                "model": {"encoder": encoder, "decoder": decoder},
                "streams": {"videos": stream | masks},
            }
        )

    def classifier(self) -> ForeignWeights:
        """A classifier of the mean over tokens, normalised after it; or of the first token after the final norm."""
        layout, conversion = self._layout, self._conversion
        encoder = self._encoder(final_norm=not layout.is_pooled(conversion))
        description, streams = f"{self._system} checkpoint, fine-tuned", {"videos": self._modality}
        return layout.read_classifier(conversion, description, encoder, streams, "first", self._last_norm_epsilon)

    def _encoder(self, final_norm: bool) -> dict[str, Any]:
        return self._layout.read_encoder(
            self._conversion,
            self._patches,
            self._options.num_heads,
            final_norm=final_norm,
            norm_epsilon=self._norm_epsilon,
            positions=self._positions,
        )


def trained_grid(conversion: Conversion, options: Any, patch: tuple[int, ...]) -> dict[str, Any]:  # noqa: ANN401 - options
    """The setting `trained_grid` of positions, where options say that the file was trained at another size.

    Raises:
        InteropError: patches do not fill a size.
    """
    size, frames = getattr(options, "trained_size", None), getattr(options, "trained_frames", None)
    for name, value in {"size": options.size, "trained_size": size}.items():
        conversion.require_multiple(name, value, math.lcm(*patch[1:]), "pixels")
    for name, value in {"num_frames": options.num_frames, "trained_frames": frames}.items():
        conversion.require_multiple(name, value, patch[0], "frames")
    if size is None and frames is None:
        return {}
    size, frames = size or options.size, frames or options.num_frames
    return {"trained_grid": [frames // patch[0], size // patch[1], size // patch[2]]}


def write_clips(
    writing: Writing, layout: Layout, encoder: Mapping[str, Any], decoder: Mapping[str, Any], square: bool = True
) -> None:
    """Writes a masked model of clips but for its positions, or the encoder of a classifier.

    Args:
        encoder: settings, as `Writing.require_part`.
        decoder: the same.
        square: whether frames must be as high as they are wide.

    Raises:
        InteropError: the layout cannot say what the model is.
    """
    layout.write_encoder(writing, writing.patches("frames", "height", "width", square=square), **encoder)
    if not writing.classifier:
        layout.write_decoder(writing, **{"embed_bias": (False,), "positions_at": ("decoder",), **decoder})

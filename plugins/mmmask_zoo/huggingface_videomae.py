"""The layout of transformers' VideoMAE (huggingface/transformers): `videomae.*`, `decoder.*`, `classifier.*`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmmask.interfaces import ForeignWeights
from mmmask.interop import flat_sinusoid_table
from mmmask_zoo.clips import CLIP_DECODER, ClipOptions, read_clips
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.huggingface import BLOCK, common_config, labels, options_from, pixel_loss, sizes
from mmmask_zoo.layout import Layout, LayoutFormat
from mmmask_zoo.options import NormEpsilon
from mmmask_zoo.writing import Writing

LAYOUT = Layout(
    patch="videomae.embeddings.patch_embeddings.projection",
    blocks="videomae.encoder.layer",
    block=replace(BLOCK, query_value=("attention.attention.q_bias", "attention.attention.v_bias")),
    norm="videomae.layernorm",
    embed="encoder_to_decoder",
    decoder_blocks="decoder.decoder_layers",
    decoder_norm="decoder.norm",
    head="decoder.head",
    classifier="classifier",
)
"""Names in files, whichever release wrote them, and in memory before release 5; all releases load them."""

IN_MEMORY = replace(
    LAYOUT, block=replace(BLOCK, query_value=("attention.attention.query.bias", "attention.attention.value.bias"))
)
"""Names in memory since release 5, which renames while it loads and saves."""

LAST_NORM_EPSILON = 1e-5
"""Epsilon of fc_norm and of the decoder's last LayerNorm, whatever layer_norm_eps is."""


class HuggingFaceVideoMAEFormat(LayoutFormat):
    """VideoMAEForPreTraining, VideoMAEModel (`strict=False`) and VideoMAEForVideoClassification, read and written.

    Written are the names that all releases load, and a `config.json` beside them, for `from_pretrained`. Positions are
    computed and not in the files.

    The decoder's last LayerNorm and the one on pooled features have an epsilon of 1e-5 in transformers, whatever
    layer_norm_eps is. It is read as such; a model with a smaller one is written all the same, and predictions of the
    two then differ by at most 5e-6 of themselves at features of variance one. With a larger one nothing is written.
    """

    class Config(ClipOptions):
        norm_epsilon: NormEpsilon = 1e-12

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has transformers' embeddings of tubelets."""
        key = f"{_layout(keys).patch}.weight"
        return key in keys and keys[key].dim() == 5

    @classmethod
    def options_from(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Options that transformers' config.json gives."""
        return options_from(config, ("videomae",), cls.Config.model_fields, normalized="channel")

    def _read(self, conversion: Conversion) -> ForeignWeights:
        layout = _layout(conversion.source)
        epsilons = (self.config.norm_epsilon, LAST_NORM_EPSILON)
        final_norm = f"{layout.norm}.weight" in conversion.source
        # transformers knows the statistics of colours only
        known = {"unnormalize": False, "final_norm": final_norm}
        return read_clips(conversion, layout, self.config, "a transformers VideoMAE", *epsilons, **known)

    def _write(self, writing: Writing) -> dict[str, Any]:
        writing.require_one_stream()
        encoder, classifier = writing.part("encoder"), writing.classifier
        plain = {"free": ("norm_epsilon", "final_norm"), "qkv_bias": ("query_value", False)}
        same = {name: (getattr(encoder, name, None),) for name in ("norm_epsilon", "qkv_bias")}
        epsilon = classifier.norm_epsilon if classifier else None
        if classifier and getattr(encoder, "final_norm", True) != (epsilon is None):
            raise writing.error(
                "classifier.norm_epsilon and encoder.final_norm: the layout normalises after pooling or before it, once"
            )
        patches = writing.patches("frames", "height", "width", square=False)
        decoder = same | CLIP_DECODER | {"free": ("final_norm_epsilon",)}
        LAYOUT.write(writing, patches, plain, decoder, ("first",), epsilon or 0)
        for part in writing.parts:
            grid = writing.grid(writing.stream)
            writing.require_table(part, "flat_sinusoid", flat_sinusoid_table(grid, writing.part(part).width, grid))
        config = common_config(writing) | {
            "model_type": "videomae",
            "num_frames": writing.modality.sample_shape[1],
            "tubelet_size": writing.modality.spec.patch_size[0],
            "qv_bias": encoder.qkv_bias == "query_value",
            "use_mean_pooling": not encoder.final_norm,
        }
        if not classifier:
            return config | _decoder_config(writing)
        _require_small_epsilon(writing, "classifier", epsilon or 0)
        return config | {"architectures": ["VideoMAEForVideoClassification"], **labels(classifier.classes)}


def _layout(state: Mapping[str, Tensor]) -> Layout:
    """Names of a state dict; those of a bare VideoMAEModel have no `videomae.` in front."""
    whole = any(key.startswith("videomae.") for key in state)
    files, in_memory = (layout if whole else layout.without("videomae.") for layout in (LAYOUT, IN_MEMORY))
    return in_memory if f"{in_memory.blocks}.0.attention.attention.query.bias" in state else files


def _decoder_config(writing: Writing) -> dict[str, Any]:
    """Checks epsilon and loss, and returns the decoder's part of config.json."""
    decoder, spec = writing.part("decoder"), writing.modality.spec
    _require_small_epsilon(writing, "model.decoder", decoder.final_norm_epsilon or decoder.norm_epsilon)
    colours = spec.channels == 3
    loss = pixel_loss(
        writing, False, normalize=("channel", "none") if colours else ("channel",), unnormalize=(colours,)
    )
    writing.require_statistics()
    return {
        "architectures": ["VideoMAEForPreTraining"],
        **sizes(decoder, "decoder_"),
        "norm_pix_loss": loss.normalize == "channel",
    }


def _require_small_epsilon(writing: Writing, where: str, epsilon: float) -> None:
    """Checks an epsilon that would make the last LayerNorm another one in transformers."""
    if epsilon > LAST_NORM_EPSILON:
        raise writing.error(
            f"{where}.norm_epsilon is {epsilon}; the last LayerNorm of the layout has {LAST_NORM_EPSILON}, and at most "
            "that can pass for it"
        )

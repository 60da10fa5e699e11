"""The layout of transformers' VideoMAE (huggingface/transformers): `videomae.*`, `decoder.*`, `classifier.*`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Written
from mmmask.interop import flat_sinusoid_table
from mmmask_zoo.clips import ClipModel, ClipOptions, write_clips
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.huggingface import BLOCK, common_config, labels, open_writing, options_from, pixel_loss, sizes
from mmmask_zoo.layout import Layout
from mmmask_zoo.options import NormEpsilon
from mmmask_zoo.writing import Part, Writing

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
"""In files, whichever release wrote them, and in memory before release 5: all releases load it."""

IN_MEMORY = replace(
    LAYOUT, block=replace(BLOCK, query_value=("attention.attention.query.bias", "attention.attention.value.bias"))
)
"""Since release 5, which renames while it loads and saves."""

LAST_NORM_EPSILON = 1e-5
"""Epsilon of fc_norm and of the decoder's last LayerNorm, whatever layer_norm_eps is."""


class HuggingFaceVideoMAEFormat(Format):
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

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        conversion, layout = Conversion(self.config.name, state), _layout(state)
        epsilons = (self.config.norm_epsilon, LAST_NORM_EPSILON)
        model = ClipModel(conversion, layout, self.config, "a transformers VideoMAE", *epsilons)
        if "classifier.weight" in state:
            return model.classifier()
        # transformers knows the statistics of colours only
        colours = conversion.patches(f"{layout.patch}.weight", "frames, height, width").channels == 3
        return model.pretraining(pooled=f"{layout.norm}.weight" not in state, unnormalize=colours)

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a masked model of clips, or a classifier of pooled features or of the first token.

        Raises:
            InteropError: the layout cannot say what the model is.
        """
        writing = open_writing(self.config.name, settings, state)
        encoder = writing.part("encoder")
        plain = {"free": ("norm_epsilon", "final_norm"), "qkv_bias": ("query_value", False)}
        same = {name: (getattr(encoder, name, None),) for name in ("norm_epsilon", "qkv_bias")}
        if not writing.classifier:
            same["final_norm_epsilon"] = (getattr(writing.part("decoder"), "final_norm_epsilon", None),)
        write_clips(writing, LAYOUT, plain, same, square=False)
        _require_computed(writing, "encoder")
        config = common_config(writing) | {
            "model_type": "videomae",
            "num_frames": writing.modality.sample_shape[1],
            "tubelet_size": writing.modality.spec.patch_size[0],
            "qv_bias": encoder.qkv_bias == "query_value",
            "use_mean_pooling": not encoder.final_norm,
        }
        return writing.finished(config | (_classifier(writing) if writing.classifier else _decoder(writing)))


def _layout(state: Mapping[str, Tensor]) -> Layout:
    """Names of a state dict; those of a bare VideoMAEModel have no `videomae.` in front."""
    whole = any(key.startswith("videomae.") for key in state)
    files, in_memory = (layout if whole else layout.without("videomae.") for layout in (LAYOUT, IN_MEMORY))
    return in_memory if f"{in_memory.blocks}.0.attention.attention.query.bias" in state else files


def _classifier(writing: Writing) -> dict[str, Any]:
    """Writes the head of a classifier, and returns its part of config.json."""
    classifier, pooled = writing.settings, not writing.part("encoder").final_norm
    writing.require("classifier", classifier, pool=("mean" if pooled else "first",))
    if pooled != (classifier.norm_epsilon is not None):
        raise writing.error(
            "classifier.norm_epsilon and encoder.final_norm: the layout normalises after pooling or before it, once"
        )
    _require_small_epsilon(writing, "classifier", classifier.norm_epsilon or 0)
    LAYOUT.write_classifier(writing, ("first",), classifier.norm_epsilon)
    return {"architectures": ["VideoMAEForVideoClassification"], **labels(classifier.classes)}


def _decoder(writing: Writing) -> dict[str, Any]:
    """Checks decoder and loss, and returns their part of config.json."""
    decoder, spec = writing.part("decoder"), writing.modality.spec
    _require_small_epsilon(writing, "model.decoder", decoder.final_norm_epsilon or decoder.norm_epsilon)
    colours = spec.channels == 3
    loss = pixel_loss(
        writing, False, normalize=("channel", "none") if colours else ("channel",), unnormalize=(colours,)
    )
    writing.require_statistics()
    _require_computed(writing, "decoder")
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


def _require_computed(writing: Writing, part: Part) -> None:
    """Checks that positions are those that transformers computes for the model's own grid."""
    grid = writing.grid(writing.stream)
    writing.require_table(part, "flat_sinusoid", flat_sinusoid_table(grid, writing.part(part).width, grid))

"""Layouts of transformers (huggingface/transformers, Apache-2.0): ViTMAE and ViT, VideoMAE, with a config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from mmmask.interfaces import ForeignWeights
from mmmask.interop import flat_sinusoid_table
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.layout import Block, Layout, LayoutFormat
from mmmask_zoo.mae import PictureOptions, read_pictures, write_pictures
from mmmask_zoo.options import NormalizedTokens, NormEpsilon
from mmmask_zoo.videomae import LAYOUT as ORIGINAL_VIDEOMAE
from mmmask_zoo.videomae import ClipOptions, read_clips
from mmmask_zoo.writing import Writing

BLOCK = Block(
    norm1="layernorm_before",
    projections=("attention.attention.query", "attention.attention.key", "attention.attention.value"),
    query_value=(),
    proj="attention.output.dense",
    norm2="layernorm_after",
    fc1="intermediate.dense",
    fc2="output.dense",
)
"""A block of ViT in files, whichever release wrote them, and in memory before release 5."""

VITMAE = Layout(
    system="a transformers ViTMAE",
    patch="vit.embeddings.patch_embeddings.projection",
    cls_token="vit.embeddings.cls_token",
    positions="vit.embeddings.position_embeddings",
    blocks="vit.encoder.layer",
    block=BLOCK,
    norm="vit.layernorm",
    mask_token="decoder.mask_token",
    embed="decoder.decoder_embed",
    decoder_positions="decoder.decoder_pos_embed",
    decoder_blocks="decoder.decoder_layers",
    decoder_norm="decoder.decoder_norm",
    head="decoder.decoder_pred",
    classifier="classifier",
    pool="prefix",
)
"""Names in files, which all releases load."""
VITMAE_RENAMED = replace(VITMAE, decoder_blocks="decoder.decoder_encoder.layer")
"""Names in files that release 5 saved, which renames one time too often."""
VITMAE_IN_MEMORY = replace(
    VITMAE,
    blocks="vit.layers",
    block=Block(
        norm1=BLOCK.norm1,
        projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        query_value=(),
        proj="attention.o_proj",
        norm2=BLOCK.norm2,
    ),
)
"""Names in memory since release 5, which renames while it loads and saves."""

LAST_NORM_EPSILON = 1e-5
"""Epsilon of VideoMAE's fc_norm and of its decoder's last LayerNorm, whatever layer_norm_eps is."""
VIDEOMAE = replace(
    ORIGINAL_VIDEOMAE,
    system="a transformers VideoMAE",
    patch="videomae.embeddings.patch_embeddings.projection",
    blocks="videomae.encoder.layer",
    block=replace(BLOCK, query_value=("attention.attention.q_bias", "attention.attention.v_bias")),
    norm="videomae.layernorm",
    decoder_blocks="decoder.decoder_layers",
    classifier="classifier",
    last_norm_epsilon=LAST_NORM_EPSILON,
)
"""Names in files, whichever release wrote them, and in memory before release 5; all releases load them."""
VIDEOMAE_IN_MEMORY = replace(
    VIDEOMAE, block=replace(BLOCK, query_value=("attention.attention.query.bias", "attention.attention.value.bias"))
)
"""Names in memory since release 5, which renames while it loads and saves."""

SIZES = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
"""Key of a config.json -> mmmask's setting; a decoder's keys have `decoder_` in front."""
OPTIONS = {
    "layer_norm_eps": "norm_epsilon",
    "num_attention_heads": "num_heads",
    "decoder_num_attention_heads": "decoder_num_heads",
    "mask_ratio": "mask_ratio",
    "num_frames": "num_frames",
    "image_size": "size",
    "norm_pix_loss": "normalize",
}
"""Key of a config.json -> option of a format that reads the weights beside it."""


class TransformersFormat(LayoutFormat):
    """Files of transformers, and what the config.json beside them tells."""

    model_types: ClassVar[tuple[str, ...]]
    normalized: ClassVar[str]
    """Value of `normalize` that `norm_pix_loss` stands for."""

    @classmethod
    def options_from(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Options that the config.json of a model gives; none where it is of another model."""
        if config.get("model_type") not in cls.model_types:
            return {}
        known = cls.Config.model_fields
        said = {option: config[key] for key, option in OPTIONS.items() if option in known and key in config}
        if isinstance(size := said.get("size"), list) and len(set(map(str, size))) == 1:
            said["size"] = size[0]
        if isinstance(normalize := said.get("normalize"), bool):
            said["normalize"] = cls.normalized if normalize else "none"
        return said


class HuggingFaceViTMAEFormat(TransformersFormat):
    """ViTMAEForPreTraining, ViTMAEModel (`strict=False`) and ViTForImageClassification, read and written.

    Written are the names that all releases load, and a `config.json` beside them, for `from_pretrained`.
    """

    model_types = ("vit_mae", "vit")
    normalized = "token"

    class Config(PictureOptions):
        normalize: NormalizedTokens = "none"
        norm_epsilon: NormEpsilon = 1e-12

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has transformers' embeddings of a ViT: a cls token, a table of positions and square patches."""
        layout = cls._layout(keys)
        needed = (layout.cls_token, layout.positions, f"{layout.patch}.weight")
        return all(key in keys for key in needed) and keys[f"{layout.patch}.weight"].dim() == 4

    @staticmethod
    def _layout(state: Mapping[str, Tensor]) -> Layout:
        """Names of a state dict; those of a bare ViTMAEModel have no `vit.` in front."""
        is_bare = VITMAE.cls_token not in state
        known = (VITMAE_IN_MEMORY, VITMAE_RENAMED, VITMAE)
        in_memory, renamed, files = (layout.without("vit.") if is_bare else layout for layout in known)
        if any(key.startswith(f"{in_memory.blocks}.") for key in state):
            return in_memory
        return renamed if any(key.startswith(f"{renamed.decoder_blocks}.") for key in state) else files

    def _read(self, conversion: Conversion) -> ForeignWeights:
        return read_pictures(conversion, self._layout(conversion.source), norm_epsilon=self.config.norm_epsilon)

    def _write(self, writing: Writing) -> dict[str, Any]:
        writing.require_one_stream()
        encoder = writing.require_part("encoder", "vit", ("norm_epsilon",), prefix_tokens=(1,), qkv_bias=(True, False))
        # a config.json has one value for encoder and decoder
        same = {name: (getattr(encoder, name),) for name in ("norm_epsilon", "qkv_bias")}
        write_pictures(writing, VITMAE, **same)
        config = _common_config(writing) | {"qkv_bias": encoder.qkv_bias}
        if writing.classifier:
            config |= {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
            return config | _labels(writing)
        loss = _pixel_loss(writing, True, normalize=("token", "none"), unnormalize=(False,))
        masker = writing.settings.streams[writing.stream].masker
        if masker.name != "random":
            raise writing.error(f"streams.{writing.stream}.masker.name is {masker.name}; the layout masks at random")
        return config | {
            "architectures": ["ViTMAEForPreTraining"],
            "model_type": "vit_mae",
            **_sizes(writing.part("decoder"), "decoder_"),
            "norm_pix_loss": loss.normalize == "token",
            "mask_ratio": masker.mask_ratio,
        }


class HuggingFaceVideoMAEFormat(TransformersFormat):
    """VideoMAEForPreTraining, VideoMAEModel (`strict=False`) and VideoMAEForVideoClassification, read and written.

    Written are the names that all releases load, and a `config.json` beside them, for `from_pretrained`. Positions are
    computed and not in the files.

    The decoder's last LayerNorm and the one on pooled features have an epsilon of 1e-5 in transformers, whatever
    layer_norm_eps is. It is read as such; a model with a smaller one is written all the same, and predictions of the
    two then differ by at most 5e-6 of themselves at features of variance one. With a larger one nothing is written.
    """

    model_types = ("videomae",)
    normalized = "channel"

    class Config(ClipOptions):
        norm_epsilon: NormEpsilon = 1e-12

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has transformers' embeddings of tubelets."""
        key = f"{cls._layout(keys).patch}.weight"
        return key in keys and keys[key].dim() == 5

    @staticmethod
    def _layout(state: Mapping[str, Tensor]) -> Layout:
        """Names of a state dict; those of a bare VideoMAEModel have no `videomae.` in front."""
        is_bare = not any(key.startswith("videomae.") for key in state)
        known = (VIDEOMAE, VIDEOMAE_IN_MEMORY)
        files, in_memory = (layout.without("videomae.") if is_bare else layout for layout in known)
        return in_memory if f"{in_memory.blocks}.0.{in_memory.block.query_value[0]}" in state else files

    def _read(self, conversion: Conversion) -> ForeignWeights:
        layout = self._layout(conversion.source)
        encoder = {
            "norm_epsilon": self.config.norm_epsilon,
            "final_norm": f"{layout.norm}.weight" in conversion.source,
        }
        for key in conversion.source:  # some releases 5 have one
            if key.endswith(".attention.attention.key.bias"):
                conversion.ignore(key, "adds the same to all scores of a query, which softmax takes away")
        # transformers knows the statistics of colours only
        return read_clips(conversion, layout, encoder, unnormalize=False)

    def _write(self, writing: Writing) -> dict[str, Any]:
        writing.require_one_stream()
        encoder, classifier = writing.part("encoder"), writing.classifier
        epsilon = classifier.norm_epsilon if classifier and classifier.norm == "layer" else None
        if classifier and getattr(encoder, "final_norm", True) != (epsilon is None):
            raise writing.error(
                f"streams.{writing.stream}.norm and model.encoder.final_norm: the layout normalises after pooling or "
                "before it, once"
            )
        patches = writing.patches("frames", "height", "width", square=False)
        plain = {"free": ("norm_epsilon", "final_norm"), "qkv_bias": ("query_value", False)}
        same = {name: (getattr(encoder, name, None),) for name in ("norm_epsilon", "qkv_bias")}
        VIDEOMAE.write(writing, patches, plain, {"free": ("final_norm_epsilon",), **same}, epsilon or 0)
        for part in writing.parts:
            grid = writing.grid
            writing.require_table(part, "flat_sinusoid", flat_sinusoid_table(grid, writing.part(part).width, grid))
        config = _common_config(writing) | {
            "model_type": "videomae",
            "num_frames": writing.modality.sample_shape[1],
            "tubelet_size": writing.modality.spec.patch_size[0],
            "qv_bias": encoder.qkv_bias == "query_value",
            "use_mean_pooling": not encoder.final_norm,
        }
        decoder = None if classifier else writing.part("decoder")
        where, last = f"streams.{writing.stream}", epsilon or 0
        if decoder is not None:
            where, last = "model.decoder", decoder.final_norm_epsilon or decoder.norm_epsilon
        if last > LAST_NORM_EPSILON:  # in transformers, the LayerNorm would be another one
            raise writing.error(
                f"{where}.norm_epsilon is {last}; the last LayerNorm of the layout has {LAST_NORM_EPSILON}, and at "
                "most that can pass for it"
            )
        if classifier:
            return config | {"architectures": ["VideoMAEForVideoClassification"], **_labels(writing)}
        colours = writing.modality.spec.channels == 3
        normalize = ("channel", "none") if colours else ("channel",)
        loss = _pixel_loss(writing, False, normalize=normalize, unnormalize=(colours,))
        writing.require_statistics()
        return config | {
            "architectures": ["VideoMAEForPreTraining"],
            **_sizes(decoder, "decoder_"),
            "norm_pix_loss": loss.normalize == "channel",
        }


def _sizes(settings: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 - settings of a component
    """Sizes of an encoder in a config.json, or with the prefix `decoder_` of a decoder."""
    said = {prefix + key: getattr(settings, setting) for key, setting in SIZES.items()}
    return said | {f"{prefix}intermediate_size": round(settings.width * settings.mlp_ratio)}


def _common_config(writing: Writing) -> dict[str, Any]:
    """Keys of the config.json of every model."""
    encoder, modality = writing.part("encoder"), writing.modality
    height, width = modality.sample_shape[-2:]
    return {
        **_sizes(encoder),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm_epsilon,
        "image_size": height if height == width else [height, width],
        "patch_size": modality.spec.patch_size[-1],
        "num_channels": modality.spec.channels,
    }


def _labels(writing: Writing) -> dict[str, dict[str, Any]]:
    """Names of a head's outputs in a config.json; transformers' own defaults where they are numbers only."""
    classes = writing.classes[writing.stream][writing.label_set]
    names = [f"LABEL_{name}" if name == str(number) else name for number, name in enumerate(classes)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def _pixel_loss(writing: Writing, epsilon_inside: bool, **allowed: tuple[object, ...]) -> Any:  # noqa: ANN401 - settings
    """Settings of the loss, where the layout can say them.

    Args:
        epsilon_inside: whether the layout adds 1e-6 to a variance, not to its root; checked only where it normalises.
        allowed: as `Writing.require`.
    """
    where, settings = f"streams.{writing.stream}", writing.settings.streams[writing.stream]
    if settings.decoder_masker is not None:
        raise writing.error(
            f"{where}.decoder_masker is {settings.decoder_masker.name}; the layout predicts all masked tokens"
        )
    loss = settings.loss
    if loss.name != "pixels":
        raise writing.error(f"{where}.loss.name is {loss.name}; the layout is that of a model of pixels")
    writing.require(f"{where}.loss", loss, error=("squared",), slices=(None,), **allowed)
    if loss.normalize != "none":
        writing.require(f"{where}.loss", loss, epsilon=(1e-6,), epsilon_inside=(epsilon_inside,))
    return loss

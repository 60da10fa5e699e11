"""Parts that the layouts of transformers (huggingface/transformers, Apache-2.0) have in common."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mmmask_zoo.layout import Block
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


def sizes(settings: Any, prefix: str = "") -> dict[str, Any]:  # noqa: ANN401 - settings of a component
    """Sizes of an encoder in a config.json, or with the prefix `decoder_` of a decoder."""
    said = {prefix + key: getattr(settings, setting) for key, setting in SIZES.items()}
    return said | {f"{prefix}intermediate_size": round(settings.width * settings.mlp_ratio)}


def common_config(writing: Writing) -> dict[str, Any]:
    """Keys of the config.json of every model."""
    encoder, modality = writing.part("encoder"), writing.modality
    height, width = modality.sample_shape[-2:]
    return {
        **sizes(encoder),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": encoder.norm_epsilon,
        "image_size": height if height == width else [height, width],
        "patch_size": modality.spec.patch_size[-1],
        "num_channels": modality.spec.channels,
    }


def options_from(
    config: Mapping[str, Any], model_types: Collection[str], known: Collection[str], normalized: str
) -> dict[str, Any]:
    """Options that the config.json of a model gives; none where it is of another model.

    Args:
        known: the options of the format.
        normalized: the value of `normalize` that `norm_pix_loss` stands for.
    """
    if config.get("model_type") not in model_types:
        return {}
    said = {option: config[key] for key, option in OPTIONS.items() if option in known and key in config}
    if isinstance(size := said.get("size"), list) and len(set(map(str, size))) == 1:
        said["size"] = size[0]
    if isinstance(normalize := said.get("normalize"), bool):
        said["normalize"] = normalized if normalize else "none"
    return said


def labels(classes: int) -> dict[str, dict[str, Any]]:
    """Names of a head's outputs in a config.json; mmmask has none, so they are transformers' own defaults."""
    names = [f"LABEL_{number}" for number in range(classes)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def pixel_loss(writing: Writing, epsilon_inside: bool, **allowed: tuple[object, ...]) -> Any:  # noqa: ANN401 - settings
    """Settings of the loss, where the layout can say them.

    Args:
        epsilon_inside: whether the layout adds 1e-6 to a variance, not to its root; checked only where it normalises.
        allowed: as `Writing.require`.

    Raises:
        InteropError: it is another loss.
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

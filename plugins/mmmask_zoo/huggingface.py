"""What the layouts of transformers (huggingface/transformers, Apache-2.0) have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmmask.builtins.pixels import PixelLoss
from mmmask.builtins.transformer import TransformerSettings
from mmmask.builtins.transformer_decoder import TransformerDecoder
from mmmask.experiment import Experiment
from mmmask_zoo.correspondence import Pair, Same, Stacked, linear
from mmmask_zoo.writing import Writing


@dataclass(frozen=True)
class BlockNames:
    """What one release calls the parts of a block; the two LayerNorms have the same names in all.

    Attributes:
        projections: of queries, keys and values.
        biases: of the three, or of queries and values alone.
        proj: the linear layer after attention.
        fc1: the first linear layer of the MLP.
        fc2: the second.
    """

    projections: tuple[str, str, str]
    biases: tuple[str, ...]
    proj: str = "attention.output.dense"
    fc1: str = "intermediate.dense"
    fc2: str = "output.dense"

    def pairs(self, foreign: str, own: str, depth: int) -> Iterator[Pair]:
        """The tensors of the blocks `foreign.0`, `foreign.1`, ... and of mmmask's `own.0`, `own.1`, ..."""
        modules = {
            "layernorm_before": "norm1",
            self.proj: "attn.proj",
            "layernorm_after": "norm2",
            self.fc1: "mlp.fc1",
            self.fc2: "mlp.fc2",
        }
        for old, new in ((f"{foreign}.{block}", f"{own}.{block}") for block in range(depth)):
            yield Stacked(tuple(f"{old}.{part}.weight" for part in self.projections), f"{new}.attn.qkv.weight")
            biases = tuple(f"{old}.{part}" for part in self.biases)
            if len(biases) == 3:
                yield Stacked(biases, f"{new}.attn.qkv.bias")
            else:
                yield Same(biases[0], f"{new}.attn.q_bias")
                yield Same(biases[1], f"{new}.attn.v_bias")
            for part, own_part in modules.items():
                yield from linear(f"{old}.{part}", f"{new}.{own_part}")


QUERY_KEY_VALUE = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
"""The projections in files, whichever release wrote them."""

SIZES = {"hidden_size": "width", "num_hidden_layers": "depth", "num_attention_heads": "num_heads"}
"""Key of a config.json -> mmmask's setting; a decoder's keys have `decoder_` in front."""


def sizes(settings: TransformerSettings, prefix: str = "") -> dict[str, Any]:
    """What a config.json says of an encoder, or with the prefix `decoder_` of a decoder."""
    said = {prefix + key: getattr(settings, setting) for key, setting in SIZES.items()}
    return said | {f"{prefix}intermediate_size": round(settings.width * settings.mlp_ratio)}


def common_config(writing: Writing, stream: str, size: list[int], patch: int) -> dict[str, Any]:
    """What the config.json of every model says."""
    height, width = size
    return {
        **sizes(writing.encoder),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": writing.encoder.norm_epsilon,
        "image_size": height if height == width else [height, width],
        "patch_size": patch,
        "num_channels": writing.modalities[stream].spec.channels,
    }


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


def options_from(
    config: Mapping[str, Any], model_types: Collection[str], known: Collection[str], normalized: str
) -> dict[str, Any]:
    """What the config.json of a model says that its weights do not; nothing where it is of another model.

    Args:
        known: the options of the format.
        normalized: what it calls the targets that `norm_pix_loss` stands for.
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
    """What a config.json says of the outputs of a head, which have no names here."""
    names = [f"LABEL_{number}" for number in range(classes)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


def require_plain_encoder(writing: Writing, **allowed: tuple[object, ...]) -> None:
    """Refuses what no vision transformer of transformers has, and what this one has not.

    Raises:
        InteropError: a setting of the encoder has another value than those allowed.
    """
    plain: dict[str, tuple[object, ...]] = {
        "cosine_attention": (False,),
        "layer_scale": (None,),
        "masked_tokens": ("drop",),
        "bias_per_block": (False,),
    }
    writing.require(writing.path("encoder"), writing.encoder, **plain, **allowed)


def plain_decoder(writing: Writing, **allowed: tuple[object, ...]) -> TransformerDecoder.Config:
    """The settings of the decoder, where the layout can say them.

    Raises:
        InteropError: it is another decoder, or differs from the encoder where the layout has one value for both.
    """
    assert isinstance(writing.settings, Experiment)
    decoder, encoder = writing.settings.model.decoder, writing.encoder
    if not isinstance(decoder, TransformerDecoder.Config):
        raise writing.error(f"model.decoder.name is {decoder.name}; the layout is that of a transformer")
    plain: dict[str, tuple[object, ...]] = {
        "cosine_attention": (False,),
        "layer_scale": (None,),
        "positions_at": ("decoder",),
        "prefix_tokens": (0,),
        "qkv_bias": (encoder.qkv_bias,),
        "norm_epsilon": (encoder.norm_epsilon,),
    }
    writing.require("model.decoder", decoder, **plain, **allowed)
    return decoder


def pixel_loss(writing: Writing, stream: str, epsilon_inside: bool, **allowed: tuple[object, ...]) -> PixelLoss.Config:
    """The settings of the loss, where the layout can say them.

    Args:
        epsilon_inside: where the layout adds 1e-6 to a variance, or to its root; asked for only where it normalises.

    Raises:
        InteropError: it is another loss.
    """
    assert isinstance(writing.settings, Experiment)
    where, settings = f"streams.{stream}", writing.settings.streams[stream]
    if settings.decoder_masker is not None:
        raise writing.error(
            f"{where}.decoder_masker is {settings.decoder_masker.name}; the layout predicts all masked tokens"
        )
    loss = settings.loss
    if not isinstance(loss, PixelLoss.Config):
        raise writing.error(f"{where}.loss.name is {loss.name}; the layout is that of a model of pixels")
    writing.require(f"{where}.loss", loss, error=("squared",), slices=(None,), **allowed)
    if loss.normalize != "none":
        writing.require(f"{where}.loss", loss, epsilon=(1e-6,), epsilon_inside=(epsilon_inside,))
    return loss

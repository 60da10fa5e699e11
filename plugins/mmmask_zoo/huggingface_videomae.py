"""The layout of transformers' VideoMAE (huggingface/transformers): `videomae.*`, `decoder.*`, `classifier.*`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.positions import flat_sinusoid_table
from mmmask.builtins.transformer import TransformerSettings
from mmmask.experiment import Experiment
from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights, Written
from mmmask_pixels.statistics import IMAGENET_MEAN, IMAGENET_STD
from mmmask_zoo.conversion import Conversion, embedding_key
from mmmask_zoo.correspondence import Pair, PatchEmbedding, Same, Token, linear, read_all, write_all
from mmmask_zoo.huggingface import (
    QUERY_KEY_VALUE,
    BlockNames,
    common_config,
    labels,
    options_from,
    pixel_loss,
    plain_decoder,
    require_plain_encoder,
    sizes,
)
from mmmask_zoo.videomae import DECODER_HEADS, published_decoder
from mmmask_zoo.writing import Writing

IN_FILES = BlockNames(QUERY_KEY_VALUE, ("attention.attention.q_bias", "attention.attention.v_bias"))
"""In files, whichever release wrote them, and in memory before release 5."""

IN_MEMORY = replace(IN_FILES, biases=(f"{QUERY_KEY_VALUE[0]}.bias", f"{QUERY_KEY_VALUE[2]}.bias"))
"""Since release 5, which renames while it loads and saves."""

LAST_NORM_EPSILON = 1e-5
"""Of fc_norm and of the decoder's last LayerNorm, whatever layer_norm_eps is."""

DECODER_BLOCKS = "decoder.decoder_layers"


@dataclass(frozen=True)
class _Names:
    """What releases and models call differently; by default what is written, which all releases load.

    Attributes:
        model: prefix of the encoder's keys, none in a file of the bare VideoMAEModel.
        block: what the parts of a block are called.
    """

    model: str = "videomae."
    block: BlockNames = IN_FILES

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> _Names:
        """Those of a state dict."""
        model = cls.model if any(key.startswith(cls.model) for key in state) else ""
        in_memory = f"{model}encoder.layer.0.{IN_MEMORY.biases[0]}" in state
        return cls(model, IN_MEMORY if in_memory else IN_FILES)

    @property
    def patch(self) -> str:
        """Key of the patch embedding."""
        return f"{self.model}embeddings.patch_embeddings.projection"

    @property
    def encoder(self) -> str:
        """Key of the encoder's blocks."""
        return f"{self.model}encoder.layer"

    @property
    def final_norm(self) -> str:
        """Key of the LayerNorm after the encoder, which a model has that does not pool."""
        return f"{self.model}layernorm"

    def encoder_pairs(self, key: str, patch: Sequence[int], depth: int) -> Iterator[Pair]:
        """The encoder; `key` names the embedding."""
        yield PatchEmbedding(self.patch, f"encoder.embeddings.{key}", tuple(patch))
        yield from self.block.pairs(self.encoder, "encoder.blocks", depth)
        yield from linear(self.final_norm, "encoder.norm")

    def decoder_pairs(self, own: str, head: str, depth: int) -> Iterator[Pair]:
        """The decoder and the head."""
        yield Token("mask_token", f"{own}.mask_token")
        yield Same("encoder_to_decoder.weight", f"{own}.embed.weight")
        yield from self.block.pairs(DECODER_BLOCKS, f"{own}.blocks", depth)
        yield from linear("decoder.norm", f"{own}.norm")
        yield from linear("decoder.head", f"objectives.masked.heads.{head}")


CLASSIFIER = (*linear("fc_norm", "norm"), *linear("classifier", "head"))


class HuggingFaceVideoMAEFormat(Format):
    """VideoMAEForPreTraining, VideoMAEModel (`strict=False`) and VideoMAEForVideoClassification, read and written.

    Written are the names that all releases load, and a `config.json` beside them, for `from_pretrained`. Positions are
    computed and not in the files.

    The decoder's last LayerNorm and the one on pooled features have an epsilon of 1e-5 in transformers, whatever
    layer_norm_eps is. It is read as such; a model with a smaller one is written all the same, and predictions of the
    two then differ by at most 5e-6 of themselves at features of variance one. With a larger one nothing is written.
    """

    class Config(Format.Config):
        size: int = Field(default=224, gt=0, description="height and width in pixels")
        num_frames: int = Field(default=16, gt=0, description="frames of a clip")
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        decoder_num_heads: int | None = Field(
            default=None, gt=0, description="attention heads of the decoder; null: told from its width"
        )
        mask_ratio: float = Field(default=0.9, ge=0, lt=1, description="share of the tubes that is masked")
        normalize: Literal["channel", "none"] = Field(
            default="channel", description="whether the decoder was trained on normalised tubelets (norm_pix_loss)"
        )
        norm_epsilon: float = Field(default=1e-12, gt=0, description="epsilon of the LayerNorms (layer_norm_eps)")

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has transformers' embeddings of tubelets."""
        key = f"{_Names.of(keys).patch}.weight"
        return key in keys and keys[key].dim() == 5

    @classmethod
    def options_from(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Those that transformers' config.json gives."""
        return options_from(config, ("videomae",), cls.Config.model_fields, normalized="channel")

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        reading = _Reading(self.config, Conversion(self.config.name, state))
        return reading.classifier() if "classifier.weight" in state else reading.pretraining()

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a masked model of clips, or a classifier of pooled features or of the first token.

        Raises:
            InteropError: the layout cannot say what the model is.
        """
        writing, names = Writing(self.config.name, settings, state), _Names()
        stream = writing.one_stream()
        size, patch = writing.square_patches(stream, "frames", "height", "width")
        modality = writing.modalities[stream]
        if len(modality.sample_shape) != 4:
            raise writing.error(
                f"streams.{stream}.modality.name is {modality.config.name}; the layout is that of clips"
            )
        require_plain_encoder(writing, prefix_tokens=(0,), qkv_bias=("query_value", False))
        encoder, key = writing.encoder, modality.embedding
        write_all(names.encoder_pairs(key, modality.spec.patch_size, encoder.depth), writing)
        _require_computed_positions(writing, "encoder", "encoder", encoder, stream)
        config = common_config(writing, stream, size, patch) | {
            "model_type": "videomae",
            "num_frames": modality.sample_shape[1],
            "tubelet_size": modality.spec.patch_size[0],
            "qv_bias": encoder.qkv_bias == "query_value",
            "use_mean_pooling": not encoder.final_norm,
        }
        return writing.finished(config | (_classifier(writing) or _decoder(writing, names, stream, key)))


class _Reading:
    """The sizes that a file tells, and the model part by part."""

    def __init__(self, config: HuggingFaceVideoMAEFormat.Config, conversion: Conversion) -> None:
        self.config, self.conversion = config, conversion
        self.names = _Names.of(conversion.source)
        axes = "width, channels, frames, height, width of a patch"
        self.width, self.channels, *self.patch = conversion.shape(f"{self.names.patch}.weight", axes)
        conversion.require_multiple("num_frames", config.num_frames, self.patch[0], "frames")
        conversion.require_multiple("size", config.size, math.lcm(*self.patch[1:]), "pixels")
        self.key = embedding_key(self.patch, self.channels)
        pixels = {"size": config.size, "patch_size": self.patch, "channels": self.channels}
        self.modality = {"name": "video", "num_frames": config.num_frames, **pixels}

    def pretraining(self) -> ForeignWeights:
        """A masked model. Of a file without the decoder, the published one's sizes."""
        config, conversion = self.config, self.conversion
        width, depth = published_decoder(self.width)
        if has_decoder := conversion.has("encoder_to_decoder.", "decoder."):
            width = conversion.shape("encoder_to_decoder.weight", "decoder width, width")[0]
            depth = conversion.depth(DECODER_BLOCKS)
        read_all(self.names.decoder_pairs("objectives.masked.decoders.shared", self.key, depth), conversion)
        encoder = self._encoder(pooled=f"{self.names.final_norm}.weight" not in conversion.source)
        decoder = {
            "name": "transformer",
            "width": width,
            "depth": depth,
            "num_heads": conversion.heads(config.decoder_num_heads, width, DECODER_HEADS),
            "embed_bias": False,
            "positions_at": "decoder",
            "final_norm_epsilon": LAST_NORM_EPSILON,
            **{name: encoder[name] for name in ("qkv_bias", "norm_epsilon", "positions")},
        }
        if has_decoder:
            decoder["mlp_ratio"] = self._mlp_ratio(DECODER_BLOCKS, width)
        stream = {
            "modality": self.modality,
            "masker": {"name": "tube", "mask_ratio": config.mask_ratio},
            "loss": {
                "name": "pixels",
                "normalize": config.normalize,
                "epsilon_inside": False,
                "unnormalize": self.channels == 3,  # transformers knows the statistics of colours only
            },
        }
        return conversion.finished(
            {
                "description": "a VideoMAE checkpoint of transformers",
                "model": {"encoder": encoder, "decoder": decoder},
                "streams": {"videos": stream},
            }
        )

    def classifier(self) -> ForeignWeights:
        """Of the mean of all tokens, normalised after it; or of the first token after the final norm."""
        pooled = "fc_norm.weight" in self.conversion.source
        read_all(CLASSIFIER, self.conversion)
        return self.conversion.finished(
            {
                "description": "a VideoMAE classifier of transformers",
                "encoder": self._encoder(pooled),
                "streams": {"videos": {"modality": self.modality}},
                "pool": "mean" if pooled else "first",
                "norm_epsilon": LAST_NORM_EPSILON if pooled else None,
                "classes": self.conversion.shape("classifier.weight", "classes, width")[0],
            }
        )

    def _encoder(self, pooled: bool) -> dict[str, Any]:
        """Without a final norm in a model that pools."""
        conversion, names = self.conversion, self.names
        depth = conversion.depth(names.encoder)
        read_all(names.encoder_pairs(self.key, self.patch, depth), conversion)
        has_biases = f"{names.encoder}.0.{names.block.biases[0]}" in conversion.source
        return {
            "name": "vit",
            "width": self.width,
            "depth": depth,
            "num_heads": conversion.heads(self.config.num_heads, self.width),
            "mlp_ratio": self._mlp_ratio(names.encoder, self.width),
            "qkv_bias": "query_value" if has_biases else False,
            "norm_epsilon": self.config.norm_epsilon,
            "final_norm": not pooled,
            "positions": {"name": "flat_sinusoid"},
        }

    def _mlp_ratio(self, blocks: str, width: int) -> float:
        return self.conversion.shape(f"{blocks}.0.{self.names.block.fc1}.weight", "masked, width")[0] / width


def _classifier(writing: Writing) -> dict[str, Any] | None:
    """Writes the head of a classifier, and returns what config.json says of it; None for a masked model."""
    classifier = writing.classifier
    if classifier is None:
        return None
    pooled = not writing.encoder.final_norm
    writing.require("classifier", classifier, pool=("mean" if pooled else "first",))
    if pooled != (classifier.norm_epsilon is not None):
        raise writing.error(
            "classifier.norm_epsilon and encoder.final_norm: the layout normalises after pooling or before it, once"
        )
    _require_small_epsilon(writing, "classifier", classifier.norm_epsilon or 0)
    write_all(CLASSIFIER, writing)
    return {"architectures": ["VideoMAEForVideoClassification"], **labels(classifier.classes)}


def _decoder(writing: Writing, names: _Names, stream: str, key: str) -> dict[str, Any]:
    """Writes the decoder, and returns what config.json says of it and of how it was trained."""
    assert isinstance(writing.settings, Experiment)
    decoder = plain_decoder(writing, embed_bias=(False,))
    _require_small_epsilon(writing, "model.decoder", decoder.final_norm_epsilon or decoder.norm_epsilon)
    spec = writing.modalities[stream].spec
    colours = spec.channels == 3
    normalize = ("channel", "none") if colours else ("channel",)
    loss = pixel_loss(writing, stream, False, normalize=normalize, unnormalize=(colours,))
    if colours and (spec.mean, spec.std) != (IMAGENET_MEAN, IMAGENET_STD):
        raise writing.error(
            f"streams.{stream}.modality: mean and std must be ImageNet's, as the layout's loss has them"
        )
    settings = writing.settings.streams[stream]
    own = f"objectives.masked.decoders.{settings.decoder}"
    write_all(names.decoder_pairs(own, settings.head or key, decoder.depth), writing)
    _require_computed_positions(writing, "decoder", own, decoder, stream)
    return {
        "architectures": ["VideoMAEForPreTraining"],
        **sizes(decoder, "decoder_"),
        "norm_pix_loss": loss.normalize == "channel",
    }


def _require_small_epsilon(writing: Writing, where: str, epsilon: float) -> None:
    """Refuses an epsilon that would make the last LayerNorm another one in transformers."""
    if epsilon > LAST_NORM_EPSILON:
        raise writing.error(
            f"{where}.norm_epsilon is {epsilon}; the last LayerNorm of the layout has {LAST_NORM_EPSILON}, and at most "
            "that can pass for it"
        )


def _require_computed_positions(
    writing: Writing, part: str, owner: str, settings: TransformerSettings, stream: str
) -> None:
    """Refuses positions other than those that transformers computes for the model's own grid."""
    modality = writing.modalities[stream]
    grid = modality.grid(modality.sample_shape)
    table = writing.position_table(part, owner, settings, modality.embedding, settings.width, 0)
    if not torch.equal(table, flat_sinusoid_table(grid, settings.width, grid).to(table.dtype)):
        raise writing.error(
            f"{writing.path(part)}.positions is {settings.positions.name} of another table than flat_sinusoid has for "
            f"the grid {grid}; the layout computes that one"
        )

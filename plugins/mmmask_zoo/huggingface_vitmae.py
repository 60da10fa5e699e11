"""The layout of transformers' ViTMAE and ViT (huggingface/transformers): `vit.*`, `decoder.*`, `classifier.*`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.maskers import RandomMasker
from mmmask.experiment import Experiment
from mmmask.interfaces import Format
from mmmask.interfaces.format import ForeignWeights, Written
from mmmask_zoo.conversion import Conversion, embedding_key
from mmmask_zoo.correspondence import Pair, PatchEmbedding, Token, linear, read_all, write_all
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
from mmmask_zoo.picture_positions import PicturePositions
from mmmask_zoo.writing import Writing

IN_FILES = BlockNames(QUERY_KEY_VALUE, tuple(f"{part}.bias" for part in QUERY_KEY_VALUE))
"""In files, whichever release wrote them, and in memory before release 5."""

IN_MEMORY = BlockNames(
    projections=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
    biases=("attention.q_proj.bias", "attention.k_proj.bias", "attention.v_proj.bias"),
    proj="attention.o_proj",
    fc1="mlp.fc1",
    fc2="mlp.fc2",
)
"""Since release 5, which renames while it loads and saves."""


@dataclass(frozen=True)
class _Names:
    """Everything that releases and models call differently; by default what is written, which all releases load.

    Attributes:
        model: prefix of the encoder's keys, none in a file of the bare ViTMAEModel.
        encoder: key of the encoder's blocks below the prefix.
        decoder: key of the decoder's.
        block: what their parts are called.
    """

    model: str = "vit."
    encoder: str = "encoder.layer"
    decoder: str = "decoder.decoder_layers"
    block: BlockNames = IN_FILES

    @classmethod
    def of(cls, state: Mapping[str, Tensor]) -> _Names:
        """Those of a state dict."""
        model = cls.model if f"{cls.model}embeddings.cls_token" in state else ""
        if any(key.startswith(f"{model}layers.") for key in state):
            return cls(model, "layers", cls.decoder, IN_MEMORY)
        # release 5 renames one time too often when it saves
        renamed = "decoder.decoder_encoder.layer"
        return cls(model, decoder=renamed if any(key.startswith(f"{renamed}.") for key in state) else cls.decoder)

    @property
    def patch(self) -> str:
        """Key of the patch embedding."""
        return f"{self.model}embeddings.patch_embeddings.projection"

    @property
    def positions(self) -> str:
        """Key of the encoder's table of positions."""
        return f"{self.model}embeddings.position_embeddings"

    def encoder_pairs(self, key: str, patch: Sequence[int], depth: int) -> Iterator[Pair]:
        """The encoder but for its positions; `key` names the embedding."""
        yield Token(f"{self.model}embeddings.cls_token", "encoder.prefix_tokens", row=True)
        yield PatchEmbedding(self.patch, f"encoder.embeddings.{key}", tuple(patch))
        yield from self.block.pairs(f"{self.model}{self.encoder}", "encoder.blocks", depth)
        yield from linear(f"{self.model}layernorm", "encoder.norm")

    def decoder_pairs(self, key: str, own: str, head: str, depth: int) -> Iterator[Pair]:
        """The decoder but for its positions, and the head."""
        yield Token("decoder.mask_token", f"{own}.mask_token")
        yield from linear("decoder.decoder_embed", f"{own}.embed")
        yield from self.block.pairs(self.decoder, f"{own}.blocks", depth)
        yield from linear("decoder.decoder_norm", f"{own}.norm")
        yield from linear("decoder.decoder_pred", f"objectives.masked.heads.{head}")


CLASSIFIER = tuple(linear("classifier", "head"))
DECODER_POSITIONS = "decoder.decoder_pos_embed"


class HuggingFaceViTMAEFormat(Format):
    """ViTMAEForPreTraining, ViTMAEModel (`strict=False`) and ViTForImageClassification, read and written.

    Written are the names that all releases load, and a `config.json` beside them, for `from_pretrained`.
    """

    class Config(Format.Config):
        size: int | None = Field(default=None, gt=0, description="height and width in pixels; null: the file's")
        num_heads: int | None = Field(default=None, gt=0, description="attention heads; null: told from the width")
        decoder_num_heads: int = Field(default=16, gt=0, description="attention heads of the decoder")
        mask_ratio: float = Field(default=0.75, ge=0, lt=1, description="share of the tokens that is masked")
        normalize: Literal["token", "none"] = Field(
            default="none", description="whether the decoder was trained on normalised patches (norm_pix_loss)"
        )
        norm_epsilon: float = Field(default=1e-12, gt=0, description="epsilon of every LayerNorm (layer_norm_eps)")

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has transformers' embeddings of a ViT: a cls token, a table of positions and square patches."""
        names = _Names.of(keys)
        needed = (f"{names.model}embeddings.cls_token", names.positions, f"{names.patch}.weight")
        return all(key in keys for key in needed) and keys[f"{names.patch}.weight"].dim() == 4

    @classmethod
    def options_from(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Those that transformers' config.json gives."""
        return options_from(config, ("vit_mae", "vit"), cls.Config.model_fields, normalized="token")

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        reading = _Reading(self.config, Conversion(self.config.name, state))
        return reading.classifier() if "classifier.weight" in state else reading.pretraining()

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a masked model of pictures, or a classifier of the cls token.

        Raises:
            InteropError: the layout cannot say what the model is.
        """
        writing, names = Writing(self.config.name, settings, state), _Names()
        stream = writing.one_stream()
        size, patch = writing.square_patches(stream, "height", "width")
        if size[0] != size[1]:
            raise writing.error(f"streams.{stream}.modality.size is {size}; the layout is that of square pictures")
        require_plain_encoder(writing, prefix_tokens=(1,), final_norm=(True,), qkv_bias=(True, False))
        encoder, key = writing.encoder, writing.modalities[stream].embedding
        write_all(names.encoder_pairs(key, (patch, patch), encoder.depth), writing)
        table = writing.position_table("encoder", "encoder", encoder, key, encoder.width, 1)
        writing.written[names.positions] = table.unsqueeze(0)
        config = common_config(writing, stream, size, patch) | {"qkv_bias": encoder.qkv_bias}
        return writing.finished(config | (_classifier(writing) or _decoder(writing, names, stream, key)))


class _Reading:
    """The sizes that a file tells, and the model part by part."""

    def __init__(self, config: HuggingFaceViTMAEFormat.Config, conversion: Conversion) -> None:
        self.config, self.conversion = config, conversion
        self.names = _Names.of(conversion.source)
        axes = "width, channels, height, width of a patch"
        self.width, channels, *self.patch = conversion.shape(f"{self.names.patch}.weight", axes)
        self.positions = PicturePositions(conversion, self.names.positions, self.patch, config.size)
        self.key = embedding_key(self.patch, channels)
        self.modality = {"name": "image", "size": self.positions.size, "patch_size": self.patch, "channels": channels}

    def pretraining(self) -> ForeignWeights:
        """A masked model. Of a file without the decoder, the published one's sizes."""
        config, conversion = self.config, self.conversion
        has_decoder = conversion.has("decoder.decoder_embed.", f"{self.names.decoder}.")
        width = conversion.shape("decoder.decoder_embed.weight", "decoder width, width")[0] if has_decoder else 512
        blocks = self.names.decoder
        depth = conversion.depth(blocks) if has_decoder else 8
        read_all(self.names.decoder_pairs(self.key, "objectives.masked.decoders.shared", self.key, depth), conversion)
        positions = self.positions.sinusoid
        if DECODER_POSITIONS in conversion.source:
            positions = self.positions.sinusoid_or_learned(
                DECODER_POSITIONS, f"objectives.masked.decoders.shared.positions.{self.key}", num_prefix=0
            )
        decoder = {
            "name": "transformer",
            "width": width,
            "num_heads": config.decoder_num_heads,
            "positions_at": "decoder",
            "positions": positions,
            **(self._blocks(blocks, width) if has_decoder else {"depth": depth, "norm_epsilon": config.norm_epsilon}),
        }
        stream = {
            "modality": self.modality,
            "masker": {"name": "random", "mask_ratio": config.mask_ratio, "round_down": "visible"},
            "loss": {"name": "pixels", "normalize": config.normalize, "unnormalize": False},
        }
        return conversion.finished(
            {
                "description": "a ViTMAE checkpoint of transformers",
                "model": {"encoder": self._encoder(), "decoder": decoder},
                "streams": {"images": stream},
            }
        )

    def classifier(self) -> ForeignWeights:
        """A classifier of the cls token after the final norm."""
        read_all(CLASSIFIER, self.conversion)
        return self.conversion.finished(
            {
                "description": "a ViT classifier of transformers",
                "encoder": self._encoder(),
                "streams": {"images": {"modality": self.modality}},
                "pool": "prefix",
                "norm_epsilon": None,
                "classes": self.conversion.shape("classifier.weight", "classes, width")[0],
            }
        )

    def _encoder(self) -> dict[str, Any]:
        conversion, blocks = self.conversion, f"{self.names.model}{self.names.encoder}"
        read_all(self.names.encoder_pairs(self.key, self.patch, conversion.depth(blocks)), conversion)
        return {
            "name": "vit",
            "width": self.width,
            "num_heads": conversion.heads(self.config.num_heads, self.width),
            "prefix_tokens": 1,
            "positions": self.positions.sinusoid_or_learned(
                self.names.positions, f"encoder.positions.{self.key}", num_prefix=1
            ),
            **self._blocks(blocks, self.width),
        }

    def _blocks(self, blocks: str, width: int) -> dict[str, Any]:
        """What a stack of blocks tells of itself."""
        names, conversion = self.names.block, self.conversion
        return {
            "depth": conversion.depth(blocks),
            "mlp_ratio": conversion.shape(f"{blocks}.0.{names.fc1}.weight", "masked, width")[0] / width,
            "qkv_bias": f"{blocks}.0.{names.biases[0]}" in conversion.source,
            "norm_epsilon": self.config.norm_epsilon,
        }


def _classifier(writing: Writing) -> dict[str, Any] | None:
    """Writes the head of a classifier, and returns what config.json says of it; None for a masked model."""
    classifier = writing.classifier
    if classifier is None:
        return None
    writing.require("classifier", classifier, pool=("prefix",), norm_epsilon=(None,))
    write_all(CLASSIFIER, writing)
    return {"architectures": ["ViTForImageClassification"], "model_type": "vit", **labels(classifier.classes)}


def _decoder(writing: Writing, names: _Names, stream: str, key: str) -> dict[str, Any]:
    """Writes the decoder, and returns what config.json says of it and of how it was trained."""
    assert isinstance(writing.settings, Experiment)
    decoder = plain_decoder(
        writing, prefix=("keep",), embed_bias=(True,), final_norm_epsilon=(None, writing.encoder.norm_epsilon)
    )
    loss = pixel_loss(writing, stream, True, normalize=("token", "none"), unnormalize=(False,))
    settings = writing.settings.streams[stream]
    if not isinstance(settings.masker, RandomMasker.Config):
        raise writing.error(f"streams.{stream}.masker.name is {settings.masker.name}; the layout masks at random")
    own = f"objectives.masked.decoders.{settings.decoder}"
    write_all(names.decoder_pairs(key, own, settings.head or key, decoder.depth), writing)
    # no position is added to the cls token, so its row is zero
    table = writing.position_table("decoder", own, decoder, key, decoder.width, 0)
    writing.written[DECODER_POSITIONS] = torch.cat([table.new_zeros(1, decoder.width), table]).unsqueeze(0)
    return {
        "architectures": ["ViTMAEForPreTraining"],
        "model_type": "vit_mae",
        **sizes(decoder, "decoder_"),
        "norm_pix_loss": loss.normalize == "token",
        "mask_ratio": settings.masker.mask_ratio,
    }

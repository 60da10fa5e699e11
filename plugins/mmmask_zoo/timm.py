"""The names of timm's VisionTransformer (huggingface/pytorch-image-models): encoders and classifiers of pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from pydantic import Field
from torch import Tensor

from mmmask.builtins.vit import ViTEncoder
from mmmask.interfaces.format import ForeignWeights, Written
from mmmask.interop import InteropError
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.correspondence import Pair, PatchEmbedding, Same, Token, linear, write_all
from mmmask_zoo.mae import PATCH, MAEFormat
from mmmask_zoo.writing import Writing

LAYER_SCALES = {"ls1.gamma": "scale1.weight", "ls2.gamma": "scale2.weight"}
"""What timm calls a block's factors per channel, and what mmmask does."""


class TimmFormat(MAEFormat):
    """The encoder, or a classifier, for `timm.models.VisionTransformer(...).load_state_dict`.

    timm's arguments, where mmmask's settings are E, the encoder's, and M, the modality's: img_size=M.size,
    patch_size=M.patch_size, in_chans=M.channels, embed_dim=E.width, depth=E.depth, num_heads=E.num_heads,
    mlp_ratio=E.mlp_ratio, qkv_bias=E.qkv_bias is not false, init_values=E.layer_scale, class_token=E.prefix_tokens is
    1, norm_layer=partial(LayerNorm, eps=E.norm_epsilon). An encoder: num_classes=0, fc_norm=False,
    final_norm=E.final_norm, and global_pool="avg" or "token". A classifier: num_classes=classes, fc_norm=whether
    norm_epsilon is a number, global_pool="avg" for pool `mean`, "token" for `prefix`.

    The decoder is left out. Key biases that mmmask does not have are zeros. Positions are a table, whatever computed
    them, with a row for the cls token where there is one.

    MAE's files have the same names, so a file is read as those are; one without a cls token is not.
    """

    class Config(MAEFormat.Config):
        norm_epsilon: float = Field(default=1e-6, gt=0, description="epsilon of every LayerNorm")

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Never: the format mae recognises the same names."""
        return False

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict, as the format mae does, and with factors per channel.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        if "cls_token" not in state:
            raise InteropError(f"format {self.config.name}: cls_token is missing; an encoder without it is not read")
        names = {_with_layer_scales(key): key for key in state}
        foreign = super().read({new: state[old] for new, old in names.items()})
        settings, scale = foreign.settings, "blocks.0.scale1.weight"
        epsilon = cast(TimmFormat.Config, self.config).norm_epsilon
        encoder = (settings if "classes" in settings else settings["model"])["encoder"]
        encoder |= {
            "norm_epsilon": epsilon,
            "qkv_bias": "blocks.0.attn.qkv.bias" in names,
            "layer_scale": 1.0 if scale in names else None,  # the file's values take its place
            "final_norm": "norm.weight" in names,
        }
        if settings.get("norm_epsilon"):
            settings["norm_epsilon"] = epsilon
        if "blocks.0.mlp.fc1.weight" in names:
            masked, width = Conversion(self.config.name, state).shape("blocks.0.mlp.fc1.weight", "masked, width")
            encoder["mlp_ratio"] = masked / width
        origin = {own: tuple(names[old] for old in foreign_keys) for own, foreign_keys in foreign.origin.items()}
        return replace(foreign, origin=origin)

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts the encoder, and the head of a classifier.

        Raises:
            InteropError: timm's VisionTransformer cannot say what the encoder is.
        """
        writing = Writing(self.config.name, settings, state)
        encoder, key = writing.encoder, self._embedding(writing)
        plain = {"cosine_attention": (False,), "bias_per_block": (False,), "prefix_tokens": (0, 1)}
        writing.require(writing.path("encoder"), encoder, **plain)
        self._write_head(writing)
        table = writing.position_table("encoder", "encoder", encoder, key, encoder.width, encoder.prefix_tokens)
        writing.written["pos_embed"] = table.unsqueeze(0)
        self._write_query_value_biases(writing, encoder.depth)
        patch = next(part.spec.patch_size for part in writing.modalities.values() if part.embedding == key)
        write_all(_pairs(encoder, key, patch), writing)
        writing.leave_out("objectives.masked.decoders.", "timm's VisionTransformer is an encoder")
        writing.leave_out("objectives.masked.heads.", "timm's VisionTransformer is an encoder")
        writing.leave_out("objectives.masked.learned_losses.", "timm's VisionTransformer has no loss")
        writing.leave_out("encoder.mask_token", "timm's VisionTransformer masks nothing")
        writing.leave_out("encoder.embeddings.", "the layout has one patch embedding, for pictures")
        writing.leave_out("encoder.positions.", "the layout has one patch embedding, for pictures")
        return writing.finished()

    @staticmethod
    def _embedding(writing: Writing) -> str:
        """The key of the embedding of pictures.

        Raises:
            InteropError: there is none, or several.
        """
        patches = {part.embedding: part.spec.patch_size for part in writing.modalities.values()}
        flat = [key for key, patch in patches.items() if len(patch) == 2]
        if len(flat) != 1:
            found = ", ".join(f"{key} of {list(patch)}" for key, patch in patches.items())
            raise writing.error(f"the layout has one patch embedding, of (height, width); the model has {found}")
        return flat[0]

    @staticmethod
    def _write_head(writing: Writing) -> None:
        classifier = writing.classifier
        if classifier is None:
            return
        writing.require("classifier", classifier, pool=("mean", "prefix"))
        if classifier.norm_epsilon is not None:
            encoder = writing.encoder
            writing.require("encoder", encoder, final_norm=(False,), norm_epsilon=(classifier.norm_epsilon,))
        write_all([*linear("fc_norm", "norm"), *linear("head", "head")], writing)

    @staticmethod
    def _write_query_value_biases(writing: Writing, depth: int) -> None:
        for block in range(depth):
            query, value = (writing.pop(f"encoder.blocks.{block}.attn.{part}_bias") for part in "qv")
            if query is not None and value is not None:
                writing.written[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])


def _pairs(encoder: ViTEncoder.Config, key: str, patch: tuple[int, ...]) -> Iterator[Pair]:
    """The encoder but for its positions; `key` names the embedding."""
    yield Token("cls_token", "encoder.prefix_tokens", row=True)
    yield PatchEmbedding(PATCH, f"encoder.embeddings.{key}", patch)
    for block in range(encoder.depth):
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
            yield from linear(f"blocks.{block}.{part}", f"encoder.blocks.{block}.{part}")
        for foreign, own in LAYER_SCALES.items():
            yield Same(f"blocks.{block}.{foreign}", f"encoder.blocks.{block}.{own}")
    yield from linear("norm", "encoder.norm")


def _with_layer_scales(key: str) -> str:
    """The key with mmmask's name of a factor per channel in it."""
    for foreign, own in LAYER_SCALES.items():
        key = key.removesuffix(foreign) + own if key.endswith(f".{foreign}") else key
    return key

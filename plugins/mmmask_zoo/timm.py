"""The names of timm's VisionTransformer (huggingface/pytorch-image-models): encoders and classifiers of pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from mmmask.interfaces import ForeignWeights
from mmmask.interop import DECODERS, HEADS
from mmmask_zoo.conversion import Conversion, Patches
from mmmask_zoo.correspondence import write_all
from mmmask_zoo.layout import Block, LayoutFormat
from mmmask_zoo.mae import LAYOUT as MAE
from mmmask_zoo.mae import MAEFormat, read_pictures
from mmmask_zoo.options import NormEpsilon
from mmmask_zoo.writing import Writing

LAYOUT = replace(MAE, system="a timm", block=Block(scales=("ls1.gamma", "ls2.gamma")))
LEFT_OUT = {
    f"{DECODERS}.": "timm's VisionTransformer is an encoder",
    f"{HEADS}.": "timm's VisionTransformer is an encoder",
    "objectives.masked.learned_losses.": "timm's VisionTransformer has no loss",
    "encoder.mask_token": "timm's VisionTransformer masks nothing",
    "encoder.embeddings.": "the layout has one patch embedding, for pictures",
    "encoder.positions.": "the layout has one patch embedding, for pictures",
}


class TimmFormat(LayoutFormat):
    """The encoder, or a classifier, for `timm.models.VisionTransformer(...).load_state_dict`.

    timm's arguments, where mmmask's settings are E, the encoder's, and M, the modality's: img_size=M.size,
    patch_size=M.patch_size, in_chans=M.channels, embed_dim=E.width, depth=E.depth, num_heads=E.num_heads,
    mlp_ratio=E.mlp_ratio, qkv_bias=E.qkv_bias is not false, init_values=E.layer_scale, class_token=E.prefix_tokens is
    1, norm_layer=partial(LayerNorm, eps=E.norm_epsilon). An encoder: num_classes=0, fc_norm=False,
    final_norm=E.final_norm, and global_pool="avg" or "token". A classifier: num_classes=classes, fc_norm=whether
    the stream's norm is "layer", global_pool="avg" for pool `mean`, "token" for `prefix`.

    The decoder is left out. Key biases that mmmask does not have are zeros. Positions are a table, whatever computed
    them, with a row for the cls token where there is one.

    MAE's files have the same names, so a file is read as those are; one without a cls token is not.
    """

    class Config(MAEFormat.Config):
        norm_epsilon: NormEpsilon = 1e-6

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Never: the format mae recognises the same names."""
        return False

    def _read(self, conversion: Conversion) -> ForeignWeights:
        if LAYOUT.cls_token not in conversion.source:
            raise conversion.error(f"{LAYOUT.cls_token} is missing; an encoder without it is not read")
        final_norm = f"{LAYOUT.norm}.weight" in conversion.source
        return read_pictures(conversion, LAYOUT, norm_epsilon=self.config.norm_epsilon, final_norm=final_norm)

    def _write(self, writing: Writing) -> None:
        writing.stream = self._pictures(writing)
        free = ("layer_scale", "norm_epsilon", "qkv_bias", "masked_tokens", "final_norm")
        encoder, modality = writing.require_part("encoder", "vit", free, prefix_tokens=(0, 1)), writing.modality
        patches = Patches(encoder.width, modality.spec.channels, modality.spec.patch_size, modality.embedding)
        write_all(LAYOUT.encoder_pairs(patches, encoder.depth, encoder.final_norm), writing)
        writing.written[LAYOUT.positions] = writing.position_table("encoder", encoder.prefix_tokens)
        if (classifier := writing.classifier) is not None:
            where, pooled = f"streams.{writing.stream}", classifier.norm == "layer"
            writing.require(where, classifier, pool=("mean", "prefix"), norm=("layer", "none"))
            if pooled:
                writing.require("model.encoder", encoder, final_norm=(False,), norm_epsilon=(classifier.norm_epsilon,))
            write_all(LAYOUT.classifier_pairs(pooled, writing.head_key, writing.label_set), writing)
        for block in range(encoder.depth):
            query, value = (writing.written.pop(f"blocks.{block}.attn.{part}_bias", None) for part in "qv")
            if query is not None and value is not None:
                writing.written[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
        for prefix, why in LEFT_OUT.items():
            writing.leave_out(prefix, why)

    @staticmethod
    def _pictures(writing: Writing) -> str:
        """Name of a stream with the embedding of pictures."""
        parts = writing.modalities
        flat = {part.embedding: name for name, part in parts.items() if len(part.spec.patch_size) == 2}
        if len(flat) != 1:
            found = {part.embedding: list(part.spec.patch_size) for part in parts.values()}
            found = ", ".join(f"{key} of {patch}" for key, patch in found.items())
            raise writing.error(f"the layout has one patch embedding, of (height, width); the model has {found}")
        return next(iter(flat.values()))

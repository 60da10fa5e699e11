"""The layout of transformers' ViTMAE and ViT (huggingface/transformers): `vit.*`, `decoder.*`, `classifier.*`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmmask.interfaces import ForeignWeights
from mmmask_zoo.conversion import Conversion
from mmmask_zoo.huggingface import BLOCK, common_config, labels, options_from, pixel_loss, sizes
from mmmask_zoo.layout import Block, Layout, LayoutFormat
from mmmask_zoo.options import NormalizedTokens, NormEpsilon
from mmmask_zoo.pictures import PictureOptions, read_pictures, write_pictures
from mmmask_zoo.writing import Writing

LAYOUT = Layout(
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
)
"""Names in files, which all releases load."""

RENAMED = replace(LAYOUT, decoder_blocks="decoder.decoder_encoder.layer")
"""Names in files that release 5 saved, which renames one time too often."""

IN_MEMORY = replace(
    LAYOUT,
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


class HuggingFaceViTMAEFormat(LayoutFormat):
    """ViTMAEForPreTraining, ViTMAEModel (`strict=False`) and ViTForImageClassification, read and written.

    Written are the names that all releases load, and a `config.json` beside them, for `from_pretrained`.
    """

    class Config(PictureOptions):
        normalize: NormalizedTokens = "none"
        norm_epsilon: NormEpsilon = 1e-12

    config: Config

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has transformers' embeddings of a ViT: a cls token, a table of positions and square patches."""
        layout = _layout(keys)
        needed = (layout.cls_token, layout.positions, f"{layout.patch}.weight")
        return all(key in keys for key in needed) and keys[f"{layout.patch}.weight"].dim() == 4

    @classmethod
    def options_from(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Options that transformers' config.json gives."""
        return options_from(config, ("vit_mae", "vit"), cls.Config.model_fields, normalized="token")

    def _read(self, conversion: Conversion) -> ForeignWeights:
        layout = _layout(conversion.source)
        return read_pictures(conversion, layout, self.config, "a transformers ViTMAE", self.config.norm_epsilon)

    def _write(self, writing: Writing) -> dict[str, Any]:
        writing.require_one_stream()
        encoder = writing.require_part("encoder", "vit", ("norm_epsilon",), prefix_tokens=(1,), qkv_bias=(True, False))
        # a config.json has one value for encoder and decoder
        same = {name: (getattr(encoder, name),) for name in ("norm_epsilon", "qkv_bias")}
        write_pictures(writing, LAYOUT, **same)
        config = common_config(writing) | {"qkv_bias": encoder.qkv_bias}
        if writing.classifier:
            config |= {"architectures": ["ViTForImageClassification"], "model_type": "vit"}
            return config | labels(writing.classifier.classes)
        loss = pixel_loss(writing, True, normalize=("token", "none"), unnormalize=(False,))
        masker = writing.settings.streams[writing.stream].masker
        if masker.name != "random":
            raise writing.error(f"streams.{writing.stream}.masker.name is {masker.name}; the layout masks at random")
        return config | {
            "architectures": ["ViTMAEForPreTraining"],
            "model_type": "vit_mae",
            **sizes(writing.part("decoder"), "decoder_"),
            "norm_pix_loss": loss.normalize == "token",
            "mask_ratio": masker.mask_ratio,
        }


def _layout(state: Mapping[str, Tensor]) -> Layout:
    """Names of a state dict; those of a bare ViTMAEModel have no `vit.` in front."""
    known = (IN_MEMORY, RENAMED, LAYOUT)
    known = known if LAYOUT.cls_token in state else [layout.without("vit.") for layout in known]

    def has(blocks: str) -> bool:
        return any(key.startswith(f"{blocks}.") for key in state)

    in_memory, renamed, layout = known
    return in_memory if has(in_memory.blocks) else renamed if has(renamed.decoder_blocks) else layout

"""ConvMAE's published layout (Alpha-VL/ConvMAE): two stages of convolutions, a ViT, and MAE's decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from mmmask.interfaces import ForeignWeights
from mmmask.interop import sincos_2d_table
from mmmask_zoo.conversion import Conversion, pixel_patches
from mmmask_zoo.correspondence import Pair, linear, patch_embedding, read_all, write_all
from mmmask_zoo.layout import Layout, LayoutFormat
from mmmask_zoo.mae import PUBLISHED_DECODER, PictureOptions, picture_stream, read_positions
from mmmask_zoo.writing import Writing

LAYOUT = Layout(system="a ConvMAE", blocks="blocks3")
STAGES = (1, 2)
"""The stages of convolutions, as the file's keys number them; stage 3 is the ViT."""
FINE_TUNED = ("head.weight", "fc_norm.weight")
POINTWISE = ("conv1", "conv2", "mlp.fc1", "mlp.fc2")
"""Layers of a block that are convolutions of one cell there and linear layers here."""


class ConvMAEFormat(LayoutFormat):
    """ConvMAE's pretrained checkpoints: with the decoder, or the encoder alone (`strict=False`)."""

    class Config(PictureOptions):
        pass

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has three patch embeddings and a linear layer as the fourth, and blocks of convolutions."""
        needed = ("patch_embed1.proj.weight", "patch_embed4.weight", "blocks1.0.conv1.weight", "blocks3.0.norm1.bias")
        return all(key in keys for key in needed)

    def _read(self, conversion: Conversion) -> ForeignWeights:
        if found := [key for key in FINE_TUNED if key in conversion.source]:
            raise conversion.error(
                f"{found[0]} is of a fine-tuned file, and how those pool their features is not known: load the "
                "pretrained file"
            )
        keys = [f"patch_embed{stage}.proj.weight" for stage in (*STAGES, 3)]
        kernels = [conversion.shape(key, "width, channels, height, width of a patch") for key in keys]
        for key, (_, _, height, width) in zip(keys, kernels, strict=True):
            if height != width:
                raise conversion.error(f"{key}: patches of {height} x {width} are no squares")
        widths, sides = [kernel[0] for kernel in kernels], [kernel[2] for kernel in kernels]
        patches = pixel_patches(widths[-1], kernels[0][1], math.prod(sides), math.prod(sides))
        conversion.require_filled(patches.size)
        size, positions = read_positions(conversion, LAYOUT, patches, num_prefix=0)
        for part, table in LAYOUT.tables.items():
            if positions[part]["name"] == "learned":
                raise conversion.error(f"{table} is not the published table; it was trained or changed")
        depths = [conversion.depth(f"blocks{stage}") for stage in STAGES]
        vit = LAYOUT.block.settings(conversion, LAYOUT.blocks, widths[-1])
        read_all(_encoder_pairs(patches.key, sides, depths, vit["depth"]), conversion)
        encoder = {
            "name": "conv_vit",
            "width": widths[-1],
            "num_heads": conversion.heads(conversion.options.num_heads, widths[-1]),
            "stage_widths": widths[:-1],
            "stage_depths": depths,
            "stage_patches": sides[:-1],
            "conv_kernel": conversion.shape("blocks1.0.attn.weight", "width, 1, height, width of a kernel")[2],
            "positions": positions["encoder"],
            **vit,
        }
        published = {**PUBLISHED_DECODER, "positions": positions["decoder"]}
        decoder = LAYOUT.read_decoder(conversion, patches.key, published)
        stream = picture_stream(conversion.options) | {"modality": patches.modality("image", size)}
        return LAYOUT.masked_model(conversion, encoder, decoder, {"images": stream})

    def _write(self, writing: Writing) -> None:
        if writing.classifier:
            raise writing.error("the model is a classifier; how fine-tuned files pool their features is not known")
        writing.require_statistics()
        patches = writing.patches("height", "width")
        free = ("stage_widths", "stage_depths", "stage_patches", "conv_kernel")
        encoder = writing.require_part("encoder", "conv_vit", free)
        if len(encoder.stage_widths) != len(STAGES):
            raise writing.error(
                f"model.encoder.stage_widths is {list(encoder.stage_widths)}; the layout has {len(STAGES)} stages of "
                "convolutions"
            )
        sides = [*encoder.stage_patches, patches.size[0] // math.prod(encoder.stage_patches)]
        write_all(_encoder_pairs(patches.key, sides, encoder.stage_depths, encoder.depth), writing)
        LAYOUT.write_decoder(writing, {})
        for part in writing.parts:
            computed = sincos_2d_table(writing.grid, writing.part(part).width)
            writing.written[LAYOUT.tables[part]] = writing.require_table(part, "sincos_2d", computed)


def _encoder_pairs(key: str, sides: Sequence[int], depths: Sequence[int], depth: int) -> Iterator[Pair]:
    """The encoder; `sides` are those of the patches before every stage, the ViT's included."""
    for stage in STAGES:
        side, old, new = sides[stage - 1], f"blocks{stage}", f"encoder.pyramid.{stage - 1}"
        proj = f"encoder.embeddings.{key}" if stage == STAGES[0] else f"{new}.embed.proj"
        yield from patch_embedding(f"patch_embed{stage}.proj", proj, (side, side))
        yield from linear(f"patch_embed{stage}.norm", f"{new}.embed.norm")
        for block in range(depths[stage - 1]):
            for layer in ("norm1", "norm2"):
                yield from linear(f"{old}.{block}.{layer}", f"{new}.blocks.{block}.{layer}")
            for layer in POINTWISE:
                yield from patch_embedding(f"{old}.{block}.{layer}", f"{new}.blocks.{block}.{layer}", (1, 1))
            yield from linear(f"{old}.{block}.attn", f"{new}.blocks.{block}.depthwise")
        cells = math.prod(sides[stage:])  # along a side of a token
        yield from patch_embedding(f"stage{stage}_output_decode", f"{new}.fuse", (cells, cells))
    yield from patch_embedding("patch_embed3.proj", "encoder.embed.proj", (sides[-1], sides[-1]))
    yield from linear("patch_embed3.norm", "encoder.embed.norm")
    yield from linear("patch_embed4", "encoder.project")
    yield from LAYOUT.block.pairs(LAYOUT.blocks, "encoder.blocks", depth)
    yield from linear(LAYOUT.norm, "encoder.norm")

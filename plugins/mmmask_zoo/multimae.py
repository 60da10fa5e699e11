"""MultiMAE's published layout (EPFL-VILAB/MultiMAE): `input_adapters.*`, `encoder.*`, `output_adapters.*`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Grid, Modality
from mmmask.interop import DECODERS, HEADS, sincos_2d_table
from mmmask_zoo.conversion import Conversion, pixel_patches, times
from mmmask_zoo.correspondence import (
    Pair,
    channel_first_head,
    linear,
    patch_embedding,
    read_all,
    vector,
    write_all,
)
from mmmask_zoo.layout import NORM_EPSILON, Block, LayoutFormat
from mmmask_zoo.options import DecoderNumHeads, FilesSize, MaskRatio, NumHeads
from mmmask_zoo.writing import Writing

STREAM, BLOCK = "scenes", Block()
NORMALIZED = "norm_"
"""Begins the name of a target that predicts the same part once more, with normalised patches."""
AXES = "1, width, rows, columns"
MODULES = {
    "proj_context": "embed",
    "query_norm": "cross.0.query_norm",
    "context_norm": "cross.0.context_norm",
    "decoder.q": "cross.0.q",
    "decoder.kv": "cross.0.kv",
    "decoder.proj": "cross.0.proj",
    "out_norm": "cross.0.norm",
    "mlp.fc1": "cross.0.mlp.fc1",
    "mlp.fc2": "cross.0.mlp.fc2",
}
"""Modules of an output adapter -> those of a decoder, besides its blocks."""


@dataclass(frozen=True)
class Task:
    """A part of a sample.

    Attributes:
        name: within the stream.
        key: of the embedding.
        patch: (height, width) of a token in pixels of the part.
        channels: numbers that are predicted of a pixel: channels of a picture, one of depth, logits of classes.
        is_labels: whether tokens hold classes.
    """

    name: str
    key: str
    patch: tuple[int, ...]
    channels: int
    is_labels: bool

    def pairs(self) -> Iterator[Pair]:
        """The input adapter but for its positions."""
        foreign, own = f"input_adapters.{self.name}", f"encoder.embeddings.{self.key}"
        if self.is_labels:
            yield Pair((f"{foreign}.class_emb.weight",), f"{own}.class_emb.weight")
            own = f"{own}.proj"
        yield from patch_embedding(f"{foreign}.proj", own, self.patch)


class MultiMAEFormat(LayoutFormat):
    """MultiMAE's checkpoints: with the decoders, or the encoder alone (`strict=False`).

    Parts are told from the input adapters: with an embedding of classes they are `labels`, of one channel `depth`,
    others `image`. Fine-tuned files are not read.
    """

    class Config(Format.Config):
        size: FilesSize = None
        num_heads: NumHeads = None
        decoder_num_heads: DecoderNumHeads = 8
        mask_ratio: MaskRatio = 5 / 6
        alpha: float = Field(default=1.0, gt=0, description="of the distribution of visible tokens among the parts")

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it has input adapters and blocks."""
        return "encoder.0.attn.qkv.weight" in keys and any(key.startswith("input_adapters.") for key in keys)

    def _read(self, conversion: Conversion) -> ForeignWeights:
        options = conversion.options
        found = {name: _task(conversion, name) for name in _names(conversion, "input_adapters")}
        tasks = {name: task for name, (task, _) in found.items()}
        if len(tasks) < 2:
            raise conversion.error(f"input_adapters: {', '.join(tasks)}; at least two modalities are needed")
        targets = _names(conversion, "output_adapters") or list(tasks)
        outputs = [f"output_adapters.{target}" for target in targets]
        width = conversion.shape(f"input_adapters.{next(iter(tasks))}.proj.bias", "width")[0]
        encoder = {
            "name": "vit",
            "width": width,
            "num_heads": conversion.heads(options.num_heads, width),
            "norm_epsilon": NORM_EPSILON,
            "final_norm": False,
            **BLOCK.settings(conversion, "encoder", width),
        }
        if "global_tokens" in conversion.source:
            encoder["prefix_tokens"] = conversion.shape("global_tokens", "1, tokens, width")[1]
        decoder = {"name": "cross_attention", "num_heads": options.decoder_num_heads, "norm_epsilon": NORM_EPSILON}
        if f"{outputs[0]}.proj_context.weight" in conversion.source:
            decoder["width"] = conversion.shape(f"{outputs[0]}.proj_context.weight", "decoder width, width")[0]
            decoder |= BLOCK.settings(conversion, f"{outputs[0]}.decoder_transformer", decoder["width"])
        settings: dict[str, dict[str, Any]] = {}
        for target in targets:
            if (part := target.removeprefix(NORMALIZED)) not in tasks:
                raise conversion.error(f"output_adapters.{target}: {part} is none of {', '.join(tasks)}")
            settings[target] = _target(tasks[part], target)
        trained = _trained_grid(conversion, [*(f"input_adapters.{task}" for task in tasks), *outputs])
        grid = trained
        if options.size:
            first = next(iter(tasks.values())).patch
            if any(options.size % side for side in first):
                raise conversion.error(f"size {options.size} is not a multiple of the file's patches of {times(first)}")
            grid = options.size // first[0], options.size // first[1]
        positions = {"name": "sincos_2d", "first": "row", **({"trained_grid": trained} if grid != trained else {})}
        modalities = {
            name: modality
            | {"patch_size": task.patch, "size": [cells * side for cells, side in zip(grid, task.patch, strict=True)]}
            for name, (task, modality) in found.items()
        }
        read_all(_pairs(tasks, settings, encoder, decoder.get("depth", 2)), conversion)
        stream = {
            "modalities": modalities,
            "masker": {"name": "budget", "mask_ratio": options.mask_ratio, "alpha": options.alpha},
            "targets": settings,
        }
        model = {"encoder": encoder | {"positions": positions}, "decoder": decoder | {"positions": positions}}
        data = {"description": "a MultiMAE checkpoint", "model": model, "streams": {STREAM: stream}}
        return conversion.finished(data)

    def _write(self, writing: Writing) -> None:
        writing.require_one_stream()
        ((stream, settings),) = writing.settings.streams.items()
        where = f"streams.{stream}"
        if settings.objective != "masked" or settings.modalities is None:
            raise writing.error(f"{where}: the layout is that of masked samples of several modalities")
        tasks = {
            name: _written_task(writing, f"{where}.modalities.{name}", name, writing.modalities[part])
            for part, (name, _) in settings.parts(stream).items()
        }
        for name, target in settings.targets.items():
            part, expected = target.part or name, name.removeprefix(NORMALIZED)
            head = target.head or tasks[part].key
            if (part, target.decoder, head) != (expected, name, _head(tasks[part], name)):
                raise writing.error(
                    f"{where}.targets.{name}: the layout can only say {_target(tasks[expected], name)}"
                    if expected in tasks
                    else f"{where}.targets.{name}: its name is that of a part, or {NORMALIZED} and that"
                )
        sizes = {"qkv_bias": (True, False), "positions": ("sincos_2d",), "norm_epsilon": (NORM_EPSILON,)}
        encoder = writing.require_part("encoder", "vit", ["prefix_tokens"], final_norm=(False,), **sizes)
        decoder = writing.require_part("decoder", "cross_attention", **sizes)
        for part in ("encoder", "decoder"):
            writing.require(f"model.{part}.positions", writing.part(part).positions, first=("row",))
        write_all(_pairs(tasks, settings.targets, encoder.model_dump(), decoder.depth), writing)
        grids = {modality.grid(modality.sample_shape) for modality in writing.modalities.values()}
        if len(grids) > 1:
            raise writing.error(f"{where}.modalities: grids {', '.join(map(str, grids))}; the layout has one")
        for own, prefix, names in ((encoder, "input", tasks), (decoder, "output", settings.targets)):
            grid = own.positions.trained_grid or next(iter(grids))
            table = sincos_2d_table(grid, own.width, "row").to(writing.dtype).mT.unflatten(1, grid).unsqueeze(0)
            writing.written |= {f"{prefix}_adapters.{name}.pos_emb": table for name in names}


def _names(conversion: Conversion, prefix: str) -> list[str]:
    """Names of adapters, in the order of the file."""
    found = (re.match(rf"{prefix}\.(\w+)\.", key) for key in conversion.source)
    return list(dict.fromkeys(match[1] for match in found if match))


def _task(conversion: Conversion, name: str) -> tuple[Task, dict[str, Any]]:
    """A part, told from its input adapter, and the settings of its modality but for the size."""
    layer = f"input_adapters.{name}"
    _, channels, *patch = conversion.shape(f"{layer}.proj.weight", "width, channels, height, width of a patch")
    if f"{layer}.class_emb.weight" in conversion.source:
        classes, width = conversion.shape(f"{layer}.class_emb.weight", "classes, width")
        key = f"labels_{classes}_{times(patch)}"
        settings = {"name": "labels", "classes": classes, "class_width": width}
        return Task(name, key, tuple(patch), classes, True), settings
    if channels == 1:
        return Task(name, f"depth_{times(patch)}", tuple(patch), 1, False), {"name": "depth", "standardize": True}
    key = pixel_patches(0, channels, *patch).key
    return Task(name, key, tuple(patch), channels, False), {"name": "image", "channels": channels}


def _trained_grid(conversion: Conversion, adapters: Sequence[str]) -> Grid:
    """Grid of the tables of positions, which must be the sinusoid, and of the same grid."""
    grids = set()
    for table in (table for adapter in adapters if (table := f"{adapter}.pos_emb") in conversion.source):
        _, width, *grid = conversion.shape(table, AXES)
        if width % 4 or not conversion.is_computed(table, sincos_2d_table(tuple(grid), width, "row"), AXES):
            raise conversion.error(f"{table} is not the sinusoid that MultiMAE computes")
        grids.add(tuple(grid))
    if len(grids) != 1:
        raise conversion.error(f"pos_emb of {len(grids)} grids, expected one that all adapters have")
    return grids.pop()


def _head(task: Task, target: str) -> str:
    """Key of a target's head: the embedding's, or of a second target of the part its own."""
    return task.key if target == task.name else target


def _target(task: Task, target: str) -> dict[str, Any]:
    """Settings of a target."""
    normalize = "none" if target == task.name else "token"
    loss: dict[str, Any] = {"name": "pixels", "normalize": normalize, "unnormalize": False}
    if task.is_labels:
        loss = {"name": "cross_entropy"}
    elif task.channels == 1:
        loss = {"name": "depth", "normalize": "none"}
    more = {} if target == task.name else {"part": task.name, "head": target}
    return {"loss": loss, "decoder": target, "average": "samples", **more}


def _pairs(
    tasks: Mapping[str, Task], targets: Mapping[str, Any], encoder: Mapping[str, Any], decoder_depth: int
) -> Iterator[Pair]:
    """All tensors but tables of positions."""
    yield Pair(
        ("global_tokens",), "encoder.prefix_tokens", "flattened", lambda table: table[0], lambda table: [table[None]]
    )
    for task in tasks.values():
        yield from task.pairs()
    yield from BLOCK.pairs("encoder", "encoder.blocks", encoder["depth"])
    for target in targets:
        foreign, own, task = f"output_adapters.{target}", f"{DECODERS}.{target}", tasks[target.removeprefix(NORMALIZED)]
        yield vector(f"{foreign}.mask_token", f"{own}.mask_token")
        for name, other in tasks.items():
            yield vector(f"{foreign}.task_embeddings.{name}", f"{own}.part_embeddings.{other.key}")
        for old, new in MODULES.items():
            yield from linear(f"{foreign}.{old}", f"{own}.{new}")
        yield from BLOCK.pairs(f"{foreign}.decoder_transformer", f"{own}.blocks", decoder_depth)
        head = f"{HEADS}.{_head(task, target)}"
        yield from channel_first_head(f"{foreign}.out_proj", head, task.channels, task.patch)


def _written_task(writing: Writing, where: str, name: str, modality: Modality) -> Task:
    """A part, where its input adapter can tell it."""
    config, spec = modality.config, modality.spec
    if spec.vocab_size is not None:
        writing.require(where, config, name=("labels",))
        writing.require(where, config, ignore=(None,))
    elif spec.channels == 1:
        writing.require(where, config, name=("depth",))
        writing.require(where, config, standardize=(True,))
    else:
        writing.require(where, config, name=("image",))
        writing.require_statistics(modality=modality)
    return Task(
        name, modality.embedding, spec.patch_size, spec.vocab_size or spec.channels, spec.vocab_size is not None
    )

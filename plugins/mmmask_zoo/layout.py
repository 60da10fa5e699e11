"""Layout: the names that one system gives to the parts of a masked ViT, from which it is read and written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Written
from mmmask.interop import CLASSIFIER, DECODERS, HEADS, LABEL_SET, classification
from mmmask_zoo.conversion import Conversion, Patches
from mmmask_zoo.correspondence import Pair, linear, patch_embedding, read_all, stacked, vector, write_all
from mmmask_zoo.writing import Part, Writing

NORM_EPSILON = 1e-6
"""Epsilon of every LayerNorm in the files of the original systems."""

PART_KEYS: dict[Part, str] = {"encoder": "encoder", "decoder": f"{DECODERS}.shared"}
"""Keys of the encoder, and of the decoder that streams have by default."""

DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}
"""Width of a published decoder -> its attention heads, where systems have no one number for all."""


class LayoutFormat(Format):
    """A format that is read and written by a table of pairs."""

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict: with the decoder, the encoder alone (`strict=False`), or fine-tuned."""
        return self._read(Conversion(self.config, state))

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a masked model or a classifier."""
        writing = Writing(self.config.name, settings, state)
        return writing.finished(self._write(writing))

    @abstractmethod
    def _read(self, conversion: Conversion) -> ForeignWeights: ...

    @abstractmethod
    def _write(self, writing: Writing) -> dict[str, Any] | None:
        """Writes the model, and returns the config.json beside the file, if there is one."""


@dataclass(frozen=True)
class Block:
    """Names of a transformer block's parts in a file, by default timm's.

    Attributes:
        projections: of queries, keys and values: one for all, or three.
        query_value: the biases of queries and values, where keys have none.
        log_scale: the temperatures of cosine attention, (heads, 1, 1).
        scales: the factors per channel on what attention and MLP add.
    """

    norm1: str = "norm1"
    projections: tuple[str, ...] = ("attn.qkv",)
    query_value: tuple[str, ...] = ("attn.q_bias", "attn.v_bias")
    log_scale: str = "attn.scale"
    proj: str = "attn.proj"
    norm2: str = "norm2"
    fc1: str = "mlp.fc1"
    fc2: str = "mlp.fc2"
    scales: tuple[str, ...] = ()

    def pairs(self, foreign: str, own: str, depth: int) -> Iterator[Pair]:
        """The tensors of blocks `foreign.0`, `foreign.1`, ... and of mmmask's `own.0`, `own.1`, ..."""
        modules = {self.norm1: "norm1", self.proj: "attn.proj", self.norm2: "norm2"}
        modules |= {self.fc1: "mlp.fc1", self.fc2: "mlp.fc2"}
        vectors = dict(zip(self.query_value, ("attn.q_bias", "attn.v_bias"), strict=False))
        vectors |= dict(zip(self.scales, ("scale1.weight", "scale2.weight"), strict=False))
        for old, new in ((f"{foreign}.{block}", f"{own}.{block}") for block in range(depth)):
            if len(self.projections) == 1:
                yield from linear(f"{old}.{self.projections[0]}", f"{new}.attn.qkv")
            else:
                for part in ("weight",) if self.query_value else ("weight", "bias"):
                    yield stacked(tuple(f"{old}.{name}.{part}" for name in self.projections), f"{new}.attn.qkv.{part}")
            yield vector(f"{old}.{self.log_scale}", f"{new}.attn.log_scale", shape=(-1, 1, 1))
            for name, own_name in vectors.items():
                yield Pair((f"{old}.{name}",), f"{new}.{own_name}")
            for name, own_name in modules.items():
                yield from linear(f"{old}.{name}", f"{new}.{own_name}")

    def settings(self, conversion: Conversion, foreign: str, width: int) -> dict[str, Any]:
        """The settings that blocks `foreign.0`, `foreign.1`, ... of a file tell."""
        depth = conversion.depth(foreign)

        def has(*names: str) -> bool:
            return any(f"{foreign}.{block}.{name}" in conversion.source for block in range(depth) for name in names)

        settings: dict[str, Any] = {
            "depth": depth,
            "qkv_bias": "query_value" if has(*self.query_value) else has(f"{self.projections[0]}.bias"),
            "cosine_attention": has(self.log_scale),
            "layer_scale": 0.1 if has(*self.scales) else None,  # the file's values take its place
        }
        if has(f"{self.fc1}.weight"):
            settings["mlp_ratio"] = conversion.shape(f"{foreign}.0.{self.fc1}.weight", "hidden, width")[0] / width
        return settings


@dataclass(frozen=True)
class Layout:
    """Properties that a system's files have in common: names, by default MAE's, and all that no key tells.

    A part that a system lacks is simply never there. Reading and writing raise InteropError as `Conversion` and
    `Writing` do.

    Attributes:
        system: its name, for the description.
        pooled_norm: the LayerNorm after the mean over tokens, in a classifier that pools.
        mask_token_shape: with -1 for its width.
        encoder: settings of every encoder.
        decoder: settings of every decoder.
        pool: what a classifier pools where the final norm comes first; with `mean`, a LayerNorm always follows.
        last_norm_epsilon: of the decoder's last LayerNorm and of the pooled one, where it is not that of the others.
    """

    system: str = "an MAE"
    patch: str = "patch_embed.proj"
    cls_token: str = "cls_token"
    positions: str = "pos_embed"
    blocks: str = "blocks"
    block: Block = Block()
    norm: str = "norm"
    mask_token: str = "mask_token"
    mask_token_shape: tuple[int, ...] = (1, 1, -1)
    decoder_cls_token: str = "decoder_cls_token"
    embed: str = "decoder_embed"
    decoder_positions: str = "decoder_pos_embed"
    decoder_blocks: str = "decoder_blocks"
    decoder_norm: str = "decoder_norm"
    head: str = "decoder_pred"
    pooled_norm: str = "fc_norm"
    classifier: str = "head"
    encoder: Mapping[str, Any] = field(default_factory=lambda: {"prefix_tokens": 1})
    decoder: Mapping[str, Any] = field(default_factory=lambda: {"positions_at": "decoder"})
    pool: str = "mean"
    last_norm_epsilon: float | None = None

    @property
    def tables(self) -> dict[Part, str]:
        """Keys of the tables of positions."""
        return {"encoder": self.positions, "decoder": self.decoder_positions}

    def without(self, prefix: str) -> Layout:
        """The same names without a prefix, as files of the encoder alone or fine-tuned ones have them."""
        names = {field.name: getattr(self, field.name) for field in fields(self) if field.type == "str"}
        return replace(self, **{field: name.removeprefix(prefix) for field, name in names.items()})

    def encoder_pairs(self, patches: Patches, depth: int, final_norm: bool) -> Iterator[Pair]:
        """The encoder but for its positions."""
        yield vector(self.cls_token, "encoder.prefix_tokens", row=True)
        yield from patch_embedding(self.patch, f"encoder.embeddings.{patches.key}", patches.size)
        yield from self.block.pairs(self.blocks, "encoder.blocks", depth)
        if final_norm:
            yield from linear(self.norm, "encoder.norm")

    def decoder_pairs(self, own: str, head: str, depth: int) -> Iterator[Pair]:
        """The decoder but for its positions, and the head."""
        yield vector(self.mask_token, f"{own}.mask_token", self.mask_token_shape)
        yield vector(self.decoder_cls_token, f"{own}.prefix_tokens", row=True)
        yield from linear(self.embed, f"{own}.embed")
        yield from self.block.pairs(self.decoder_blocks, f"{own}.blocks", depth)
        yield from linear(self.decoder_norm, f"{own}.norm")
        yield from linear(self.head, head)

    def classifier_pairs(self, pooled: bool, own: str = CLASSIFIER, label_set: str = LABEL_SET) -> Iterator[Pair]:
        """The head of a classifier, and the LayerNorm of one that pools."""
        if pooled:
            yield from linear(self.pooled_norm, f"{own}.norm")
        yield from linear(self.classifier, f"{own}.linear.{label_set}")

    def read(
        self,
        conversion: Conversion,
        patches: Patches,
        streams: Mapping[str, Mapping[str, Any]],
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any] | None,
    ) -> ForeignWeights:
        """The model, but for tables of positions, which are taken apart.

        Args:
            patches: of the encoder.
            streams: settings of every stream.
            encoder: its settings that neither a key tells nor the layout.
            decoder: the same, and sizes for a file without it; None where the latents are the answer.
        """
        is_classifier = f"{self.classifier}.weight" in conversion.source
        pooled = is_classifier and (self.pool == "mean" or f"{self.pooled_norm}.weight" in conversion.source)
        settings = {
            "name": "vit",
            "width": patches.width,
            "num_heads": conversion.heads(conversion.options.num_heads, patches.width),
            "norm_epsilon": NORM_EPSILON,
            **self.block.settings(conversion, self.blocks, patches.width),
            **self.encoder,
            **encoder,
        }
        if is_classifier:
            settings["final_norm"] = not pooled
        read_all(self.encoder_pairs(patches, settings["depth"], settings.get("final_norm", True)), conversion)
        if is_classifier:
            epsilon = self.last_norm_epsilon or settings["norm_epsilon"]
            return self.fine_tuned(conversion, settings, streams, epsilon if pooled else None)
        answer: dict[str, Any] = {"name": "in_place"}
        if decoder is not None:
            alike = {name: settings[name] for name in ("norm_epsilon", "qkv_bias", "cosine_attention")}
            answer = self.read_decoder(conversion, patches.key, alike | dict(decoder))
        return self.masked_model(conversion, settings, answer, streams)

    def read_decoder(self, conversion: Conversion, key: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Reads the decoder but for its positions, and the head.

        Args:
            key: of the embedding, whose name the head has.
            settings: of the decoder; where the file has it, keys come first.

        Returns:
            The decoder's settings.
        """
        decoder = {"name": "transformer", "final_norm_epsilon": self.last_norm_epsilon, **self.decoder, **settings}
        if any(name.startswith((f"{self.embed}.", f"{self.decoder_blocks}.")) for name in conversion.source):
            decoder["width"] = conversion.shape(f"{self.embed}.weight", "decoder width, width")[0]
            decoder |= self.block.settings(conversion, self.decoder_blocks, decoder["width"])
        read_all(self.decoder_pairs(PART_KEYS["decoder"], f"{HEADS}.{key}", decoder["depth"]), conversion)
        heads = conversion.heads(conversion.options.decoder_num_heads, decoder["width"], DECODER_HEADS)
        return decoder | {"num_heads": heads}

    def fine_tuned(
        self,
        conversion: Conversion,
        encoder: Mapping[str, Any],
        streams: Mapping[str, Mapping[str, Any]],
        norm_epsilon: float | None,
    ) -> ForeignWeights:
        """The collected weights and the head, for a model with classes.

        Args:
            norm_epsilon: of a LayerNorm after the mean; None where the encoder's final norm comes first.
        """
        pooled = norm_epsilon is not None
        read_all(self.classifier_pairs(pooled), conversion)
        classes = conversion.shape(f"{self.classifier}.weight", "classes, width")[0]
        modalities = {name: stream["modality"] for name, stream in streams.items()}
        settings = classification(encoder, modalities, classes, "mean" if pooled else self.pool, norm_epsilon)
        return conversion.finished({"description": f"{self.system} checkpoint, fine-tuned", **settings})

    def masked_model(
        self,
        conversion: Conversion,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any],
        streams: Mapping[str, Mapping[str, Any]],
    ) -> ForeignWeights:
        """The collected weights, for a masked model of these settings."""
        model = {"encoder": encoder, "decoder": decoder}
        return conversion.finished({"description": f"{self.system} checkpoint", "model": model, "streams": streams})

    def write(
        self,
        writing: Writing,
        patches: Patches,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any] | None,
        norm_epsilon: float = NORM_EPSILON,
    ) -> None:
        """Writes the model, but for tables of positions.

        Args:
            encoder: what its settings may be, as `Writing.require_part`, besides the layout's.
            decoder: the same; None where the latents are the answer.
            norm_epsilon: of the LayerNorm after the mean.
        """
        tuned = {"final_norm": (True, False), "masked_tokens": ("drop", "replace")} if writing.classifier else {}
        settings = writing.require_part("encoder", "vit", **_only(self.encoder) | dict(encoder) | tuned)
        write_all(self.encoder_pairs(patches, settings.depth, settings.final_norm), writing)
        if writing.classifier:
            pooled = self.pool == "mean" or not settings.final_norm
            self.write_classifier(writing, norm_epsilon if pooled else None)
            writing.require("model.encoder", settings, final_norm=(not pooled,))
        elif decoder is not None:
            self.write_decoder(writing, decoder)

    def write_classifier(self, writing: Writing, norm_epsilon: float | None) -> None:
        """Writes the head of classes.

        Args:
            norm_epsilon: as of `fine_tuned`.
        """
        pool, norm, pooled = self.pool, {"norm": ("none",)}, norm_epsilon is not None
        if pooled:
            pool, norm = "mean", {"norm": ("layer",), "norm_epsilon": (norm_epsilon,)}
        writing.require(f"streams.{writing.stream}", writing.classifier, pool=(pool,), **norm)
        write_all(self.classifier_pairs(pooled, writing.head_key, writing.label_set), writing)
        writing.leave_out("encoder.mask_token", "fine-tuned files mask nothing")

    def write_decoder(self, writing: Writing, allowed: Mapping[str, Any]) -> None:
        """Writes the decoder but for its positions, and the head.

        Args:
            allowed: what its settings may be, as `Writing.require_part`, besides the layout's.
        """
        has_prefix = getattr(writing.part("encoder"), "prefix_tokens", 0) > 0
        any_prefix = {} if has_prefix else {"prefix": ("keep", "drop")}
        settings = _only(self.decoder) | dict(allowed) | any_prefix
        if "final_norm_epsilon" not in settings.get("free", ()):
            settings["final_norm_epsilon"] = (None, getattr(writing.part("decoder"), "norm_epsilon", None))
        decoder = writing.require_part("decoder", "transformer", **settings)
        write_all(self.decoder_pairs(writing.key("decoder"), writing.head_key, decoder.depth), writing)


def _only(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings as `Writing.require_part` takes them."""
    return {name: (value,) for name, value in settings.items()}

"""Layout: the names that one system gives to the parts of a masked ViT, from which it is read and written."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Written
from mmmask.interop import DECODERS, HEADS
from mmmask_zoo.conversion import ATTENTION_HEADS, Conversion, Patches
from mmmask_zoo.correspondence import Pair, linear, patch_embedding, read_all, stacked, vector, write_all
from mmmask_zoo.writing import Writing

NORM_EPSILON = 1e-6
"""Epsilon of every LayerNorm in the files of the original systems."""

SHARED = f"{DECODERS}.shared"
"""Key of the decoder that streams have by default."""


class LayoutFormat(Format):
    """A format that is read and written by a table of pairs."""

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict: with the decoder, the encoder alone (`strict=False`), or fine-tuned.

        Raises:
            InteropError: a key is missing or of another shape, or the number of heads is not known.
        """
        return self._read(Conversion(self.config.name, state))

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a masked model or a classifier.

        Raises:
            InteropError: the layout cannot say what the model is.
        """
        writing = Writing(self.config.name, settings, state)
        return writing.finished(self._write(writing))

    @abstractmethod
    def _read(self, conversion: Conversion) -> ForeignWeights:
        """Reads the file that the conversion is of."""

    @abstractmethod
    def _write(self, writing: Writing) -> dict[str, Any] | None:
        """Writes the model, and returns the config.json beside the file, if there is one."""


@dataclass(frozen=True)
class Block:
    """Names of a transformer block's parts in a file, by default timm's.

    Attributes:
        projections: of queries, keys and values: one for all, or three.
        query_value: the biases of queries and values, where keys have none.
        scales: the factors per channel on what attention and MLP add.
        log_scale: the temperatures of cosine attention, (heads, 1, 1).
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
        """The settings that blocks `foreign.0`, `foreign.1`, ... of a file tell.

        Raises:
            InteropError: a block is missing, or a tensor that tells a size has another number of axes.
        """
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
            settings["mlp_ratio"] = conversion.shape(f"{foreign}.0.{self.fc1}.weight", "masked, width")[0] / width
        return settings


@dataclass(frozen=True)
class Layout:
    """Names of a model's parts in a file, by default MAE's. A part that a system lacks is simply never there.

    Attributes:
        pooled_norm: the LayerNorm after the mean over tokens, in a classifier that pools.
        mask_token_shape: with -1 for its width.
    """

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

    def classifier_pairs(self, pooled: bool) -> Iterator[Pair]:
        """The head of a classifier, and the LayerNorm of one that pools."""
        if pooled:
            yield from linear(self.pooled_norm, "norm")
        yield from linear(self.classifier, "head")

    # --- from a file

    def read(
        self,
        conversion: Conversion,
        patches: Patches,
        system: str,
        streams: Mapping[str, Mapping[str, Any]],
        options: Any,  # noqa: ANN401 - of a format, num_heads and decoder_num_heads among them
        *,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any] | None,
        published: Mapping[str, Any] | None = None,
        decoder_heads: Mapping[int, int] = ATTENTION_HEADS,
        is_classifier: bool | None = None,
        pool: str = "mean",
        norm_epsilon: float = NORM_EPSILON,
        last_norm_epsilon: float | None = None,
    ) -> ForeignWeights:
        """The model, but for tables of positions, which are taken apart.

        Args:
            patches: of the encoder.
            system: its name, for the description.
            streams: settings of every stream.
            encoder: its settings that no key tells.
            decoder: the same; None where the latents are the answer.
            published: settings of the published decoder, where the file has none.
            decoder_heads: {width: attention heads} of published decoders.
            is_classifier: whether the file is fine-tuned; None where the head's key tells.
            pool: what a classifier pools where the final norm comes first, such as `prefix`; with `mean`, a LayerNorm
                always follows the mean.
            norm_epsilon: of every LayerNorm.
            last_norm_epsilon: of the decoder's last LayerNorm and that after pooling, where it is another.

        Raises:
            InteropError: the number of heads is not known, or a tensor that tells a size is missing or damaged.
        """
        if is_classifier is None:
            is_classifier = f"{self.classifier}.weight" in conversion.source
        pooled = is_classifier and (pool == "mean" or f"{self.pooled_norm}.weight" in conversion.source)
        settings = {
            "name": "vit",
            "width": patches.width,
            "num_heads": conversion.heads(options.num_heads, patches.width),
            "norm_epsilon": norm_epsilon,
            **self.block.settings(conversion, self.blocks, patches.width),
            **encoder,
        }
        if is_classifier:
            settings["final_norm"] = not pooled
        read_all(self.encoder_pairs(patches, settings["depth"], settings.get("final_norm", True)), conversion)
        if is_classifier:
            read_all(self.classifier_pairs(pooled), conversion)
            return conversion.finished(
                {
                    "description": f"{system} checkpoint, fine-tuned",
                    "encoder": settings,
                    "streams": {name: {"modality": stream["modality"]} for name, stream in streams.items()},
                    "pool": "mean" if pooled else pool,
                    "norm_epsilon": (last_norm_epsilon or norm_epsilon) if pooled else None,
                    "classes": conversion.shape(f"{self.classifier}.weight", "classes, width")[0],
                }
            )
        answer: dict[str, Any] = {"name": "in_place"}
        if decoder is not None:
            alike = {name: settings[name] for name in ("norm_epsilon", "qkv_bias", "cosine_attention")}
            known = {"final_norm_epsilon": last_norm_epsilon, **decoder}
            absent, heads = {**alike, **(published or {})}, options.decoder_num_heads
            answer = self.read_decoder(conversion, patches.key, heads, absent, decoder_heads, **known)
        model = {"encoder": settings, "decoder": answer}
        return conversion.finished({"description": f"{system} checkpoint", "model": model, "streams": streams})

    def read_decoder(
        self,
        conversion: Conversion,
        key: str,
        num_heads: int | None,
        absent: Mapping[str, Any],
        heads: Mapping[int, int] = ATTENTION_HEADS,
        **known: object,
    ) -> dict[str, Any]:
        """The decoder but for its positions, and the head.

        Args:
            key: of the embedding, whose name the head has.
            num_heads: attention heads, None for those published for its width.
            absent: settings of the decoder that a file without it stands for.
            heads: {width: attention heads} of published decoders.
            known: settings that no key tells.

        Returns:
            The decoder's settings.

        Raises:
            InteropError: the file has a part of it, and not what tells its sizes.
        """
        settings = {"name": "transformer", **absent, **known}
        if conversion.has(f"{self.embed}.", f"{self.decoder_blocks}."):
            settings["width"] = conversion.shape(f"{self.embed}.weight", "decoder width, width")[0]
            settings |= self.block.settings(conversion, self.decoder_blocks, settings["width"])
        read_all(self.decoder_pairs(SHARED, f"{HEADS}.{key}", settings["depth"]), conversion)
        return settings | {"num_heads": conversion.heads(num_heads, settings["width"], heads)}

    # --- to a file

    def write(
        self,
        writing: Writing,
        patches: Patches,
        encoder: Mapping[str, Any],
        decoder: Mapping[str, Any] | None,
        pools: tuple[str, ...] = (),
        norm_epsilon: float = NORM_EPSILON,
    ) -> None:
        """Writes the model, but for tables of positions.

        Args:
            encoder: what its settings may be, as `Writing.require_part`.
            decoder: the same; None where the layout has none.
            pools: what a classifier may pool where the final norm comes first; none where a LayerNorm always follows
                the mean.
            norm_epsilon: of the LayerNorm after the mean.

        Raises:
            InteropError: the layout cannot say what the model is.
        """
        allowed: dict[str, Any] = {"final_norm": (True, False)} if writing.classifier else {}
        settings = writing.require_part("encoder", "vit", **allowed | dict(encoder))
        write_all(self.encoder_pairs(patches, settings.depth, settings.final_norm), writing)
        if (classifier := writing.classifier) is not None:
            pooled = not pools or not settings.final_norm
            epsilon, pools = ((norm_epsilon,), ("mean",)) if pooled else ((None,), pools)
            writing.require("classifier", classifier, pool=pools, norm_epsilon=epsilon)
            writing.require("encoder", settings, final_norm=(not pooled,))
            write_all(self.classifier_pairs(pooled), writing)
        elif decoder is not None:
            self.write_decoder(writing, settings.prefix_tokens, **decoder)

    def write_decoder(self, writing: Writing, num_prefix: int, **allowed: Any) -> Any:  # noqa: ANN401 - settings
        """Writes the decoder but for its positions, and the head, and returns the decoder's settings.

        Args:
            num_prefix: prefix tokens of the encoder.
            allowed: what its settings may be, as `Writing.require_part`.

        Raises:
            InteropError: the layout cannot say what it is.
        """
        epsilon = getattr(writing.part("decoder"), "norm_epsilon", None)
        any_prefix = {} if num_prefix else {"prefix": ("keep", "drop")}
        if "final_norm_epsilon" not in allowed.get("free", ()):
            allowed["final_norm_epsilon"] = (None, epsilon)
        allowed |= any_prefix
        decoder = writing.require_part("decoder", "transformer", **allowed)
        write_all(self.decoder_pairs(writing.decoder_key, writing.head_key, decoder.depth), writing)
        return decoder

"""Layout: the names that one system gives to the parts of a masked ViT, from which it is read and written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mmmask.interfaces import ForeignWeights
from mmmask.interop import DECODERS, HEADS
from mmmask_zoo.conversion import ATTENTION_HEADS, Conversion, Patches
from mmmask_zoo.correspondence import Pair, PatchEmbedding, Same, Stacked, Vector, linear, read_all, write_all
from mmmask_zoo.writing import Writing

NORM_EPSILON = 1e-6
"""Epsilon of every LayerNorm in the files of the original systems, of that after the mean too."""

SHARED = f"{DECODERS}.shared"
"""Key of the decoder that streams have by default."""


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
    query_value: tuple[str, str] | None = ("attn.q_bias", "attn.v_bias")
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
        for old, new in ((f"{foreign}.{block}", f"{own}.{block}") for block in range(depth)):
            if len(self.projections) == 1:
                yield from linear(f"{old}.{self.projections[0]}", f"{new}.attn.qkv")
            else:
                for part in ("weight",) if self.query_value else ("weight", "bias"):
                    yield Stacked(tuple(f"{old}.{name}.{part}" for name in self.projections), f"{new}.attn.qkv.{part}")
            for name, bias in zip(self.query_value or (), ("q_bias", "v_bias"), strict=False):
                yield Same(f"{old}.{name}", f"{new}.attn.{bias}")
            yield Vector(f"{old}.{self.log_scale}", f"{new}.attn.log_scale", shape=(-1, 1, 1))
            for name, scale in zip(self.scales, ("scale1", "scale2"), strict=False):
                yield Same(f"{old}.{name}", f"{new}.{scale}.weight")
            for name, own_name in modules.items():
                yield from linear(f"{old}.{name}", f"{new}.{own_name}")

    def settings(self, conversion: Conversion, foreign: str, width: int) -> dict[str, Any]:
        """The settings that blocks `foreign.0`, `foreign.1`, ... of a file tell.

        Raises:
            InteropError: a block is missing, or a tensor that tells a size has another number of axes.
        """
        depth = conversion.depth(foreign)

        def has(names: tuple[str, ...]) -> bool:
            return any(f"{foreign}.{block}.{name}" in conversion.source for block in range(depth) for name in names)

        settings: dict[str, Any] = {"depth": depth, "qkv_bias": has((f"{self.projections[0]}.bias",))}
        if self.query_value and has(self.query_value):
            settings["qkv_bias"] = "query_value"
        settings["cosine_attention"] = has((self.log_scale,))
        settings["layer_scale"] = 0.1 if has(self.scales) else None  # the file's values take its place
        if has((f"{self.fc1}.weight",)):
            settings["mlp_ratio"] = conversion.shape(f"{foreign}.0.{self.fc1}.weight", "hidden, width")[0] / width
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

    # --- the table of pairs

    def encoder_pairs(self, patches: Patches, depth: int, final_norm: bool) -> Iterator[Pair]:
        """The encoder but for its positions."""
        yield Vector(self.cls_token, "encoder.prefix_tokens", row=True)
        yield PatchEmbedding(self.patch, f"encoder.embeddings.{patches.key}", patches.size)
        yield from self.block.pairs(self.blocks, "encoder.blocks", depth)
        if final_norm:
            yield from linear(self.norm, "encoder.norm")

    def decoder_pairs(self, own: str, head: str, depth: int) -> Iterator[Pair]:
        """The decoder but for its positions, and the head."""
        yield Vector(self.mask_token, f"{own}.mask_token", self.mask_token_shape)
        yield Vector(self.decoder_cls_token, f"{own}.prefix_tokens", row=True)
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

    def read_encoder(
        self, conversion: Conversion, patches: Patches, num_heads: int | None, **known: object
    ) -> dict[str, Any]:
        """Takes the encoder but for its positions, and returns its settings.

        Args:
            num_heads: attention heads, None for those published for its width.
            known: settings that no key tells.

        Raises:
            InteropError: the number of heads is not known, or as `Block.settings`.
        """
        settings = {
            "name": "vit",
            "width": patches.width,
            "num_heads": conversion.heads(num_heads, patches.width),
            **self.block.settings(conversion, self.blocks, patches.width),
            **known,
        }
        read_all(self.encoder_pairs(patches, settings["depth"], settings.get("final_norm", True)), conversion)
        return settings

    def read_decoder(
        self,
        conversion: Conversion,
        key: str,
        num_heads: int | None,
        published: Mapping[str, Any],
        heads: Mapping[int, int] = ATTENTION_HEADS,
        **known: object,
    ) -> dict[str, Any]:
        """Takes the decoder but for its positions, and the head, and returns the decoder's settings.

        Args:
            key: of the embedding, whose name the head has.
            num_heads: attention heads, None for those published for its width.
            published: the settings of the published decoder, where the file has none.
            heads: {width: attention heads} of published decoders.
            known: settings that no key tells.

        Raises:
            InteropError: the file has a part of it, and not what tells its sizes.
        """
        sizes = dict(published)
        if conversion.has(f"{self.embed}.", f"{self.decoder_blocks}."):
            width = conversion.shape(f"{self.embed}.weight", "decoder width, width")[0]
            sizes = {"width": width, **self.block.settings(conversion, self.decoder_blocks, width)}
        read_all(self.decoder_pairs(SHARED, f"{HEADS}.{key}", sizes["depth"]), conversion)
        num_heads = conversion.heads(num_heads, sizes["width"], heads)
        return {"name": "transformer", "num_heads": num_heads, **sizes, **known}

    def is_pooled(self, conversion: Conversion) -> bool:
        """Whether a fine-tuned file has a LayerNorm after the mean over tokens."""
        return f"{self.pooled_norm}.weight" in conversion.source

    def read_classifier(
        self,
        conversion: Conversion,
        description: str,
        encoder: Mapping[str, Any],
        modalities: Mapping[str, Any],
        pool: str,
        norm_epsilon: float | None = NORM_EPSILON,
    ) -> ForeignWeights:
        """Takes the head, and returns the classifier.

        Args:
            encoder: the encoder's settings; one without a final norm has the LayerNorm after pooling.
            modalities: {stream: settings of its modality}.
            pool: what is pooled where the final norm comes first, such as `prefix`; otherwise it is the mean.
            norm_epsilon: of the LayerNorm after pooling.

        Raises:
            InteropError: the head is missing or of another shape.
        """
        pooled = not encoder["final_norm"]
        read_all(self.classifier_pairs(pooled), conversion)
        return conversion.finished(
            {
                "description": description,
                "encoder": dict(encoder),
                "streams": {name: {"modality": modality} for name, modality in modalities.items()},
                "pool": "mean" if pooled else pool,
                "norm_epsilon": norm_epsilon if pooled else None,
                "classes": conversion.shape(f"{self.classifier}.weight", "classes, width")[0],
            }
        )

    # --- to a file

    def write_encoder(self, writing: Writing, patches: Patches, **settings: Any) -> Any:  # noqa: ANN401 - settings
        """Writes the encoder but for its positions, and returns its settings.

        Args:
            settings: as `Writing.require_part`.

        Raises:
            InteropError: the layout cannot say what it is.
        """
        if writing.classifier:
            settings = {"final_norm": (True, False)} | settings
        encoder = writing.require_part("encoder", "vit", **settings)
        write_all(self.encoder_pairs(patches, encoder.depth, encoder.final_norm), writing)
        return encoder

    def write_decoder(self, writing: Writing, **settings: Any) -> Any:  # noqa: ANN401 - settings
        """Writes the decoder but for its positions, and the head, and returns the decoder's settings.

        Args:
            settings: as `Writing.require_part`.

        Raises:
            InteropError: the layout cannot say what it is.
        """
        epsilon, prefix = getattr(writing.part("decoder"), "norm_epsilon", None), ("keep",)
        if not getattr(writing.part("encoder"), "prefix_tokens", 0):
            prefix = ("keep", "drop")
        settings = {"final_norm_epsilon": (None, epsilon), "prefix": prefix} | settings
        decoder = writing.require_part("decoder", "transformer", **settings)
        write_all(self.decoder_pairs(writing.decoder_key, writing.head_key, decoder.depth), writing)
        return decoder

    def write_classifier(
        self, writing: Writing, pools: tuple[str, ...] = (), norm_epsilon: float = NORM_EPSILON
    ) -> bool:
        """Writes the head, and returns whether it is a classifier at all.

        Args:
            pools: what may be pooled where the final norm comes first; none where the LayerNorm always follows the
                mean.
            norm_epsilon: of the LayerNorm after pooling.

        Raises:
            InteropError: the layout cannot say how it pools.
        """
        classifier = writing.classifier
        if classifier is None:
            return False
        pooled = not pools or not writing.part("encoder").final_norm
        epsilon, pools = ((norm_epsilon,), ("mean",)) if pooled else ((None,), pools)
        writing.require("classifier", classifier, pool=pools, norm_epsilon=epsilon)
        writing.require("encoder", writing.part("encoder"), final_norm=(not pooled,))
        write_all(self.classifier_pairs(pooled), writing)
        return True

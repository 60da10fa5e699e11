"""The masked model: tokens -> masks -> encoder -> decoder -> heads -> losses, for all streams of a step at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmmask.interfaces import (
    Component,
    Decoder,
    DecoderInput,
    Encoder,
    EncoderInput,
    Latents,
    Loss,
    Mask,
    MaskContext,
    Masker,
    Modality,
    Part,
    Tokens,
)
from mmmask.interfaces.component import every_setting
from mmmask.model.backbone import Backbone
from mmmask.model.compiling import compile_stages
from mmmask.model.masks import MaskError, draw_mask, mask_from_bool
from mmmask.model.tokenizing import tokenize_all
from mmmask.randomness import Noise, derive_seed, sample_noise
from mmmask_registry import MmmaskError


@dataclass(frozen=True)
class Stream:
    """What the model needs to know of one stream; modules are named by their keys."""

    modality: Modality
    masker: Masker
    decoder_masker: Masker | None
    loss: Loss
    decoder: str
    head: str
    weight: float = 1.0


@dataclass(frozen=True)
class StreamOutput:
    """One stream's part of a step.

    Attributes:
        loss: scalar, sum(error * counted) / max(1, sum(counted)), before its weight.
        mask: what was masked and predicted.
        latents: (batch, rows, width) of the encoder, in token order.
        predictions: (batch, predicted, dim), in token order.
        prefix: (batch, prefix tokens, width) or None.
        tokens: the samples as tokens.
    """

    loss: Tensor
    mask: Mask
    latents: Tensor
    predictions: Tensor
    prefix: Tensor | None
    tokens: Tokens


@dataclass(frozen=True)
class Output:
    """A step: the weighted sum of the streams' losses, and the streams."""

    loss: Tensor
    streams: dict[str, StreamOutput] = field(default_factory=dict)


Rows = Mapping[str, tuple[int, int]]
"""{stream: (first row of this batch, rows of the whole global batch)}; masks do not depend on how rows are spread."""


class MaskedModel(Backbone):
    """One encoder for all streams, decoders and heads by key."""

    def __init__(
        self,
        streams: Mapping[str, Stream],
        encoder: Encoder,
        decoders: Mapping[str, Decoder],
        heads: Mapping[str, nn.Module],
        seed: int = 0,
    ) -> None:
        super().__init__({name: stream.modality for name, stream in streams.items()}, encoder)
        self.streams = dict(streams)
        self.seed = seed
        self.decoders = nn.ModuleDict(decoders)
        self.heads = nn.ModuleDict(heads)
        # a loss with weights of its own (a tokeniser, say) moves and saves with the model
        self.losses = nn.ModuleDict({name: s.loss for name, s in streams.items() if isinstance(s.loss, nn.Module)})

    def forward(
        self,
        batch: Mapping[str, Tensor],
        masks: Mapping[str, Tensor | Mask] | None = None,
        step: int = 0,
        rows: Rows | None = None,
    ) -> Output:
        """One training step's forward.

        Args:
            batch: {stream: samples}, any of the streams. uint8 is normalised by the modality's statistics, floating
                point is taken as normalised.
            masks: {stream: bool (batch, tokens), True = masked, or a Mask}; overrides the stream's masker.
            step: of training; masks are a function of (seed, stream, step, row).
            rows: where this batch lies in the global batch; by default it is the global batch.

        Raises:
            UnknownName: a stream that the experiment does not have.
            MmmaskError: a sample or a mask does not fit.
        """
        tokens = tokenize_all(self.modalities, batch)
        drawn = self.draw_masks(tokens, masks or {}, step, rows or {})
        encoding, decoding = (self._noises(purpose, tokens, step, rows or {}) for purpose in ("encoder", "decoder"))
        latents = self.latents(tokens, drawn, encoding)
        predictions = self.predictions(tokens, drawn, latents, decoding)
        streams = {
            name: StreamOutput(
                self.stream_loss(name, predictions[name], tokens[name], drawn[name]),
                drawn[name], latents[name].values, predictions[name], latents[name].prefix, tokens[name],
            )
            for name in batch
        }  # fmt: skip
        weighted = [self.streams[name].weight * output.loss for name, output in streams.items()]
        return Output(torch.stack(weighted).sum(), streams)

    def compile(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as nn.Module.compile
        """Compiles the stages of encoder and decoders; masks and losses stay as they are, outside of graphs."""
        decoders = [stage for decoder in self.decoders.values() for stage in cast(Decoder, decoder).stages]
        compile_stages([*self.encoder.stages, *decoders], **kwargs)

    def plain_settings(self) -> dict[str, Any]:
        """An experiment without sources."""

        def data(component: Component) -> dict[str, Any]:
            return every_setting(component.config)

        streams = {
            name: {
                "modality": data(stream.modality),
                "masker": data(stream.masker),
                **({"decoder_masker": data(stream.decoder_masker)} if stream.decoder_masker else {}),
                "loss": data(stream.loss),
                "decoder": stream.decoder,
                "head": stream.head,
                "loss_weight": stream.weight,
            }
            for name, stream in self.streams.items()
        }
        decoder = cast(Component, next(iter(self.decoders.values())))
        return {"model": {"encoder": data(self.encoder), "decoder": data(decoder)}, "streams": streams}

    def draw_masks(
        self, tokens: Mapping[str, Tokens], given: Mapping[str, Tensor | Mask], step: int, rows: Rows
    ) -> dict[str, Mask]:
        """The mask of every stream: given by the caller, or drawn by its masker.

        Raises:
            MmmaskError: a given mask does not fit, or belongs to no stream of the batch.
        """
        if unknown := set(given) - set(tokens):
            raise MmmaskError(f"masks: {sorted(unknown)} are not in the batch, which holds {sorted(tokens)}")
        return {
            name: _given_mask(name, given[name], part)
            if name in given
            else self._draw(name, part, step, rows.get(name))
            for name, part in tokens.items()
        }

    def latents(
        self, tokens: Mapping[str, Tokens], masks: Mapping[str, Mask], noises: Mapping[str, Noise] | None = None
    ) -> dict[str, Latents]:
        """The encoder's latents of every stream's visible tokens; with noises as in training."""
        inputs = [
            EncoderInput((Part(self.modalities[name].embedding, part),), masks[name], (noises or {}).get(name))
            for name, part in tokens.items()
        ]
        return dict(zip(tokens, self.encoder(inputs), strict=True))

    def predictions(
        self,
        tokens: Mapping[str, Tokens],
        masks: Mapping[str, Mask],
        latents: Mapping[str, Latents],
        noises: Mapping[str, Noise] | None = None,
    ) -> dict[str, Tensor]:
        """The heads' answers for every stream's predicted tokens: {stream: (batch, predicted, dim)}."""
        features: dict[str, Tensor] = {}
        for key, decoder in self.decoders.items():
            names = [name for name in tokens if self.streams[name].decoder == key]
            inputs = [
                DecoderInput(
                    self.modalities[name].embedding,
                    latents[name],
                    masks[name],
                    tokens[name].grid,
                    (noises or {}).get(name),
                )
                for name in names
            ]
            features |= zip(names, decoder(inputs), strict=True) if names else ()
        return {name: self.heads[self.streams[name].head](features[name]) for name in tokens}

    def stream_loss(self, stream: str, predictions: Tensor, tokens: Tokens, mask: Mask) -> Tensor:
        """sum(error * counted) / max(1, sum(counted)): scalar, float32 or wider."""
        loss = self.streams[stream].loss
        with _full_precision(predictions.device):
            error = loss.error(predictions, loss.target(tokens, mask.predicted))
            return (error * mask.counted).sum() / mask.counted.sum().clamp(min=1)

    def restore(
        self, stream: str, predictions: Tensor, tokens: Tokens, index: Tensor, statistics: Tensor | None
    ) -> Tensor:
        """Predictions as content in the unit of the source, float32; see `Loss.restore`."""
        with _full_precision(predictions.device):
            return self.streams[stream].loss.restore(predictions.float(), tokens, index, statistics)

    def _noises(self, purpose: str, tokens: Mapping[str, Tokens], step: int, rows: Rows) -> dict[str, Noise]:
        """Noise of every stream for one purpose; none outside training."""
        found = {}
        for name, part in tokens.items() if self.training else ():
            first, total = rows.get(name) or (0, len(part.content))
            seed = derive_seed(self.seed, purpose, name, step)
            found[name] = sample_noise(seed, first, total, part.content.device)
        return found

    def _draw(self, stream: str, tokens: Tokens, step: int, rows: tuple[int, int] | None) -> Mask:
        count, device = tokens.content.shape[0], tokens.content.device
        first, total = rows or (0, count)
        noise = sample_noise(derive_seed(self.seed, "mask", stream, step), first, total, device)
        context = MaskContext(tokens.grid, count, device, noise, step, tokens)
        return draw_mask(self.streams[stream].masker, self.streams[stream].decoder_masker, context)


def _full_precision(device: torch.device) -> torch.autocast:
    """Undoes a surrounding autocast."""
    kind = device.type if torch.amp.is_autocast_available(device.type) else "cpu"  # the meta device has none
    return torch.autocast(kind, enabled=False)


def _given_mask(stream: str, mask: Tensor | Mask, tokens: Tokens) -> Mask:
    """The caller's mask, checked, on the samples' device."""
    where, shape = f"masks.{stream}", tuple(tokens.content.shape[:2])
    if not isinstance(mask, Tensor | Mask):
        raise MaskError(f"{where}: expected a bool tensor or a Mask, not {type(mask).__name__}")
    try:
        mask = mask if isinstance(mask, Mask) else mask_from_bool(mask)
    except MaskError as error:
        raise MaskError(f"{where}: {error}") from error
    if tuple(mask.masked.shape) != shape:
        raise MaskError(f"{where}: {tuple(mask.masked.shape)} does not fit {shape} (batch, tokens)")
    for name, index in (("visible", mask.visible), ("predicted", mask.predicted)):
        _check_index(f"{where}.{name}", index, *shape)
    if mask.counted.shape != mask.predicted.shape:
        counted, predicted = tuple(mask.counted.shape), tuple(mask.predicted.shape)
        raise MaskError(f"{where}.counted: {counted} does not fit predicted {predicted}")
    device = tokens.content.device
    return Mask(*(part.to(device) for part in (mask.visible, mask.predicted, mask.counted, mask.masked)))


def _check_index(where: str, index: Tensor, batch: int, tokens: int) -> None:
    if index.dtype != torch.int64 or index.dim() != 2 or index.shape[0] != batch:
        raise MaskError(f"{where}: expected integers ({batch}, n), not {index.dtype} {tuple(index.shape)}")
    if outside := index[(index < 0) | (index >= tokens)].tolist():
        raise MaskError(f"{where}: holds {outside[0]}, tokens are 0 to {tokens - 1}")
    if bool((index.diff(dim=1) <= 0).any()):
        raise MaskError(f"{where}: every row must ascend, without repetition")

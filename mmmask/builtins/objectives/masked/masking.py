"""Masks of the samples of a stream: from its maskers, or from the caller."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from mmmask.builtins.objectives.masked.teaching import Teaching
from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import (
    ChosenByName,
    Component,
    Encoder,
    EncoderInput,
    Latents,
    Mask,
    MaskContext,
    Masker,
    Modality,
    Part,
    StepContext,
    Tokens,
    build,
)
from mmmask.interfaces.naming import name_within
from mmmask.model.masks import (
    MaskError,
    draw_mask,
    given_mask,
    joined_given,
    joined_masks,
    mask_of_part,
    require_masked,
)

MaskerChoice = Annotated[Component.Config, ChosenByName("masker")]
Look = Callable[[], Latents]


class Masking:
    """The maskers of all streams of `masked`.

    Args:
        streams: {stream: settings}.
        parts: {stream: {name within the stream: part}}.
        modalities: {part: modality}.
        encoder: that maskers may ask for features.
        teaching: that they may ask instead.

    Attributes:
        masker_of: {stream: its masker}, or {part: masker} where each part has one.
        decoder_masker_of: {stream: masker}.

    Raises:
        ExperimentError: maskers that cannot be.
    """

    def __init__(
        self,
        streams: Mapping[str, Any],
        parts: Mapping[str, Mapping[str, str]],
        modalities: Mapping[str, Modality],
        encoder: Encoder,
        teaching: Teaching,
    ) -> None:
        self._streams, self._modalities, self._encoder, self._teaching = streams, modalities, encoder, teaching
        self.masker_of: dict[str, Masker] = {}
        self.decoder_masker_of: dict[str, Masker] = {}
        for stream, settings in streams.items():
            self.masker_of |= _maskers(stream, settings, parts[stream])
            if settings.decoder_masker:
                self.decoder_masker_of[stream] = build("masker", settings.decoder_masker)
                self._check_decoder_masker(stream, several=len(parts[stream]) > 1)
        for name, masker in (*self.masker_of.items(), *self.decoder_masker_of.items()):
            if masker.needs_teacher:
                where = f"streams.{name.replace('/', '.maskers.')}"
                part = [modalities[name]] if name in modalities else []
                teaching.require(f"{where}: masker {masker.config.name!r} asks a teacher for its latents", where, part)

    def varies(self, stream: str, parts: int) -> bool:
        """Whether some predicted tokens of a stream of so many parts are visible, or are missing."""
        several = parts > 1 and (stream in self.masker_of or self._streams[stream].missing == "mask")
        return several or stream in self.decoder_masker_of

    def masks(self, stream: str, tokens: Mapping[str, Tokens], context: StepContext) -> tuple[Mask, dict[str, Mask]]:
        """The mask of a sample's tokens, and {part: the mask of its own}.

        Args:
            tokens: {part: its tokens}, in order.

        Raises:
            MaskError: a given mask does not fit, or a masker leaves nothing visible.
        """
        contents = {part: own.content for part, own in tokens.items()}
        sizes = {part: content.shape[1] for part, content in contents.items()}
        (rows, *_), device = next((content.shape, content.device) for content in contents.values())
        given = context.given.get(stream)
        if isinstance(given, Mapping):
            given = joined_given(stream, given, {name_within(part): size for part, size in sizes.items()}, rows)
        if given is None and stream not in self.masker_of:
            masks = {}
            for part, own in tokens.items():
                noise = context.noise(stream, f"mask/{name_within(part)}")
                look, taught = self._looks(part, own)
                asked = MaskContext(own.grid, rows, device, noise, context.step, own, part, look, taught=taught)
                masks[part] = self._drawn(part, f"maskers.{name_within(part)}", stream, asked, whole=True)
            try:
                return joined_masks(list(masks.values())), masks
            except MaskError as error:
                raise MaskError(f"streams.{stream}.maskers: {error}") from error
        alone = tokens[stream] if stream in tokens and len(tokens) == 1 else None
        valid = _joined_valid(tokens)
        if given is not None:
            mask = given_mask(stream, given, (rows, sum(sizes.values())), device)
        else:
            grid = (sum(sizes.values()),) if alone is None else alone.grid
            parts = {} if alone is not None else {name_within(part): size for part, size in sizes.items()}
            look, taught = (None, None) if alone is None else self._looks(stream, alone)
            noise = context.noise(stream, "mask")
            asked = MaskContext(grid, rows, device, noise, context.step, alone, stream, look, parts, taught=taught)
            mask = self._drawn(stream, "masker", stream, asked, valid)
        if alone is not None:
            return mask, {stream: mask}
        first, of_parts = 0, {}
        for part, size in sizes.items():
            of_parts[part] = mask_of_part(mask, first, size, valid)
            first += size
        return mask, of_parts

    def _drawn(
        self, name: str, key: str, stream: str, asked: MaskContext, valid: Tensor | None = None, whole: bool = False
    ) -> Mask:
        masker = self.masker_of[name]
        try:
            mask = draw_mask(masker, self.decoder_masker_of.get(name), asked, valid, whole)
            if not whole:
                require_masked(mask, masker, asked.grid)
            return mask
        except MaskError as error:
            raise MaskError(f"streams.{stream}.{key}: {error}") from error

    def _looks(self, part: str, tokens: Tokens) -> tuple[Look, Look | None]:
        """Functions that give latents of whole samples: by the encoder, and by the teacher where there is one."""
        whole, teacher = Part(self._modalities[part].embedding, tokens), self._teaching.teacher
        return partial(self._features, whole), None if teacher is None else partial(teacher.latents, [whole])

    @torch.no_grad()
    def _features(self, part: Part) -> Latents:
        """Latents of whole samples, by the encoder as it stands, in evaluation mode."""
        training = self._encoder.training
        self._encoder.eval()
        (latents,) = self._encoder([EncoderInput.whole(part)])
        self._encoder.train(training)
        return latents

    def _check_decoder_masker(self, stream: str, several: bool) -> None:
        masker = self.decoder_masker_of[stream]
        problem = "of aligned parts all that is masked is decoded: leave it out" if several else ""
        if isinstance(masker, nn.Module):
            problem = f"{masker.config.name!r} has weights, which only a `masker` can train"
        if problem:
            raise ExperimentError([f"streams.{stream}.decoder_masker: {problem}"])


def _maskers(stream: str, settings: Any, parts: Mapping[str, str]) -> dict[str, Masker]:  # noqa: ANN401 - a stream's
    """The stream's masker by its name, or those of its parts by theirs.

    Raises:
        ExperimentError: maskers of other parts than the stream has.
    """
    if settings.maskers is None:
        return {stream: build("masker", settings.masker)}
    if settings.maskers.keys() != parts.keys() or len(parts) == 1:
        raise ExperimentError([f"streams.{stream}.maskers: one for each of the stream's parts, {', '.join(parts)}"])
    return {part: build("masker", settings.maskers[short]) for short, part in parts.items()}


def _joined_valid(tokens: Mapping[str, Tokens]) -> Tensor | None:
    """(batch, tokens of all parts) bool, None where all are valid."""
    if all(own.valid is None for own in tokens.values()):
        return None
    return torch.cat(
        [
            torch.ones_like(own.content[..., 0], dtype=torch.bool) if own.valid is None else own.valid
            for own in tokens.values()
        ],
        dim=1,
    )

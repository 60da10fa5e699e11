"""Targets that a teacher makes: who needs it, what it sees, and its latents of one part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmmask.builtins.objectives.masked.targets import Target
from mmmask.experiment.errors import ExperimentError
from mmmask.interfaces import Latents, Loss, Modality, Part, Tokens

KnownLatents = dict[tuple[tuple[str, ...], tuple[int, ...]], Latents]
"""{(parts that the teacher saw, stages asked for): its latents}."""


class Teaching:
    """The model's teacher, as the objective asks it.

    Args:
        teacher: the model's, None where it has none.
        parts: {stream: its parts}.
        modalities: {part: modality}.
    """

    def __init__(
        self,
        teacher: Any,  # noqa: ANN401 - mmmask.model.teacher.Teacher
        parts: Mapping[str, tuple[str, ...]],
        modalities: Mapping[str, Modality],
    ) -> None:
        self.teacher, self._parts, self._modalities = teacher, parts, modalities

    def require(self, why: str, where: str, modalities: Sequence[Modality]) -> Any:  # noqa: ANN401 - as above
        """The teacher, which then knows the tokens of these modalities.

        Raises:
            ExperimentError: there is none.
            MmmaskError: it cannot take such tokens.
        """
        if self.teacher is None:
            how = "set model.teacher, to {from: ema} or to the weights of another model"
            raise ExperimentError([f"{why}, and there is no teacher: {how}"])
        for modality in modalities:
            self.teacher.admit(where, modality)
        return self.teacher

    def encoder_for(self, target: Target, where: str) -> Any:  # noqa: ANN401 - an Encoder
        """The teacher's encoder, for the loss of a target; raises as `require`."""
        why = f"{where}.loss: {target.settings.loss.name!r} is of a teacher's latents"
        self.require(why, where, ())
        seen = [self._modalities[part] for part in self._seen(target)]
        return self.require(why, f"streams.{target.stream}", seen).encoder

    def latents(
        self, loss: Loss, target: Target, tokens: Mapping[str, Tokens], known: KnownLatents
    ) -> tuple[Latents, ...]:
        """Latents of the predicted part, in whole samples, for losses that need them; else none.

        Args:
            tokens: {part: its tokens}.
            known: latents of earlier targets of the same samples; gets those of this one.
        """
        if not loss.config.needs_teacher:
            return ()
        names, stages = self._seen(target), tuple(loss.stages)
        if (names, stages) not in known:
            parts = [Part(self._modalities[name].embedding, tokens[name]) for name in names]
            known[names, stages] = self.teacher.latents(parts, stages)
        latents = known[names, stages]
        if len(names) == 1:
            return (latents,)
        sizes, number = [tokens[name].content.shape[1] for name in names], names.index(target.part)
        values, *outputs = (part.split(sizes, dim=1)[number] for part in (latents.values, *latents.stages))
        return (replace(latents, values=values, index=None, stages=tuple(outputs)),)

    def _seen(self, target: Target) -> tuple[str, ...]:
        """Parts that the teacher sees: a moving average all of the sample, another encoder the predicted one alone."""
        return self._parts[target.stream] if self.teacher.follows else (target.part,)

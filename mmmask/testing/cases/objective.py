"""Promises of an objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmmask.experiment.settings import stream_settings
from mmmask.interfaces import Batch, Embedding, Objective, ObjectiveContext, StepContext, Tokens
from mmmask.randomness import derive_seed, sample_noise, seeded_generator
from mmmask.testing import expect
from mmmask.testing.cases.aligned import aligned_embeddings, companion
from mmmask.testing.cases.behind_encoder import BehindEncoder
from mmmask.testing.computing import BATCH, CPU, ModuleCase
from mmmask.testing.synthetic import Scene, chosen

STREAM = "stream"

CLASSES = ("cat", "dog")

DECODER = {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2}


class ObjectiveCase(BehindEncoder, ModuleCase):
    """An objective of one stream, of which all other settings but `replicate` are the defaults.

    Samples have one part, or two, `first` and `second`.
    """

    kind, interface, extras = "objective", Objective, ("modality",)
    follows_the_models_dtype = None  # pyright: ignore[reportAssignmentType] - losses choose their own precision
    two_parts: bool = False

    def _situations(self) -> list[dict[str, Any]]:
        alone = super()._situations()
        return [*alone, *({**situation, "two_parts": True} for situation in alone[:2])]

    @property
    def embeddings(self) -> dict[str, Embedding]:
        """Embeddings of the stream's parts."""
        return aligned_embeddings(self.scene) if self.two_parts else super().embeddings

    @property
    def parts(self) -> dict[str, Scene]:
        """{name of a part within the stream: its samples}."""
        return {"first": self.scene, "second": companion(self.scene)} if self.two_parts else {STREAM: self.scene}

    def _full(self, part: str) -> str:
        return f"{STREAM}/{part}" if self.two_parts else part

    def _make(self) -> Objective:
        modalities = {self._full(name): scene.modality for name, scene in self.parts.items()}
        decoder, classes = chosen("decoder", DECODER), {STREAM: {"label": CLASSES}}
        parts = {STREAM: {name: self._full(name) for name in self.parts}}
        context = ObjectiveContext(modalities, self.embeddings, self.encoder, decoder, classes, parts=parts)
        own = {key: getattr(self.config, key) for key in self.subject.Config.model_fields}
        return self.subject({STREAM: stream_settings(self.subject).model_construct(**own, replicate=2)}, context)

    def _given(self, seed: int = 0) -> tuple[dict[str, Tokens], Batch, int]:
        """Labelled samples, the first two of them views of one, also as tokens, and a step."""
        samples = {name: scene.samples(BATCH, seed) for name, scene in self.parts.items()}
        labels = torch.randint(len(CLASSES), (BATCH,), generator=seeded_generator("labels", seed))
        tokens = {self._full(name): scene.modality.tokenize(samples[name]) for name, scene in self.parts.items()}
        return tokens, Batch(samples, {"label": labels}, torch.arange(BATCH).clamp(min=1)), seed

    def _terms(self, tokens: dict[str, Tokens], batch: Batch, step: int) -> tuple[Any, Any]:
        """The plan of a step and its losses."""

        def noise(stream: str, purpose: str) -> Any:  # noqa: ANN401 - a noise function
            return sample_noise(derive_seed(stream, purpose, step), 0, BATCH, CPU)

        plan = self.component.plan(tokens, {STREAM: batch}, StepContext(step, noise))
        latents = dict(zip(plan.inputs, self.encoder(list(plan.inputs.values()), plan.stages), strict=True))
        return plan, self.component.losses(plan, latents)

    def _outputs(self, given: tuple[dict[str, Tokens], Batch, int]) -> list[Tensor]:
        return [term.sum for term in self._terms(*given)[1].values()]

    def sums_what_it_counts(self) -> None:
        """Every target has a finite scalar loss, float32 or wider, and the count that its plan says."""
        plan, terms = self._terms(*self._given())
        for name, term in terms.items():
            expect.finite(term.sum, (), "the summed loss")
            expect.that(term.sum.dtype in (torch.float32, torch.float64), "a loss in float32 or wider", term.sum.dtype)
            count = float(plan.counts[name])
            expect.that(float(term.count) == count >= 0, f"the plan's count {count}, 0 or more", float(term.count))

    def names_its_targets(self) -> None:
        """Losses, counts and `weights` have the same names: the stream's, or `STREAM/anything` of several."""
        plan, terms = self._terms(*self._given())
        wanted, weights = sorted(terms), self.component.weights(STREAM)
        strange = [name for name in wanted if name != STREAM and not name.startswith(f"{STREAM}/")]
        expect.none(strange, f"losses named {STREAM}, or {STREAM}/anything")
        expect.that(wanted, "a loss or more", "none")
        expect.equal(sorted(plan.counts), wanted, "names of the counts")
        expect.equal(sorted(weights), wanted, "names of the weights")
        expect.none((name for name, weight in weights.items() if not weight >= 0), "weights of 0 or more")

"""What every decoder promises."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Component, Decoder, DecoderInput, Encoder, Latents, Mask, build
from mmmask.testing.check import NotApplicable, Promises, Refusals, Subject, expect
from mmmask.testing.comparison import expect_close, expect_equal, expect_finite, expect_shape
from mmmask.testing.component import promise_of_every_component
from mmmask.testing.model import (
    BATCH,
    SMALL_ENCODER,
    chosen,
    expect_equal_weights,
    expect_gradients,
    expect_one_graph,
    group,
    randomize,
    small_model,
    weights_of,
)
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask.testing.synthetic import Scene, scene_of, synthetic_scenes
from mmmask_registry import MmmaskError

ENCODERS = (SMALL_ENCODER | {"prefix_tokens": 2}, SMALL_ENCODER | {"masked_tokens": "replace"})
"""One that leaves masked tokens out and has prefix tokens, one that keeps them all."""


class DecoderCase:
    """A decoder behind one encoder, with the samples of one scene."""

    def __init__(self, scene: Scene, encoder: Encoder, decoder: Decoder) -> None:
        self.scene, self.encoder, self.decoder = scene, encoder, decoder

    def __str__(self) -> str:
        return str(self.scene)

    def query(
        self, count: int = BATCH, ratio: float = 0.5, seed: int = 0, dtype: torch.dtype | None = None
    ) -> DecoderInput:
        """What the model would ask of the decoder."""
        mask = self.scene.mask(count, ratio, seed)
        with torch.no_grad():
            (latents,) = self.encoder([group(self.scene, self.scene.tokens(count, seed, dtype), mask)])
        return DecoderInput(self.scene.key, latents, mask, self.scene.grid)

    def features(self, query: DecoderInput) -> Tensor:
        """The answer to one query."""
        with torch.no_grad():
            (features,) = self.decoder([query])
        return features


class DecoderSubject(Subject):
    """A decoder; give it a small width and depth.

    Args:
        component: as for every subject.
        modality: an experiment's block `modality`, whose samples it is examined with; by default synthetic samples of
            several grids, of which it must take one.
        encoder: an experiment's block `encoder`, in front of it; by default small ViTs, one that leaves masked tokens
            out and one that keeps them, of which it must take one.
        settings: of the decoder.
    """

    kind, interface = "decoder", Decoder

    def __init__(
        self,
        component: str | type[Any],
        modality: str | dict[str, Any] | None = None,
        encoder: dict[str, Any] | None = None,
        **settings: Any,  # noqa: ANN401 - plain data
    ) -> None:
        super().__init__(component, **settings)
        self.given = None if modality is None else scene_of(modality)
        self.encoders = [chosen("encoder", block) for block in (ENCODERS if encoder is None else [encoder])]

    def cases(self, seed: int = 0) -> Iterator[DecoderCase]:
        """Those that it takes, with the weights of a seed."""
        refusals = Refusals()
        for scene in synthetic_scenes() if self.given is None else [self.given]:
            for config in self.encoders:
                try:
                    tried = self._build(scene, config, seed)
                    tried.features(tried.query())
                except MmmaskError as error:
                    refusals.add(scene, error)
                    continue
                refusals.taken += 1
                yield self._build(scene, config, seed)  # one that was not asked before
        refusals.conclude()

    def _build(self, scene: Scene, encoder_config: Component.Config, seed: int) -> DecoderCase:
        with weights_of(seed):
            try:
                encoder = build("encoder", encoder_config, embeddings=scene.embeddings)
                decoder = self.component(self.config, embeddings=scene.embeddings, latent_width=encoder.width)
            except ValueError as error:  # as the core does, which names the model
                raise MmmaskError(str(error)) from error
        return DecoderCase(scene, encoder, decoder)


promises = Promises(DecoderSubject)
promise_of_every_component(promises)


@promises
def answers_every_query(subject: DecoderSubject) -> None:
    """Every query gets features of the decoder's width for all predicted tokens, in order, and for none if none is."""
    for case in subject.cases():
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (2, 0.0)):
            query = case.query(count, ratio)
            with torch.no_grad():
                found = case.decoder([query])
            expect(len(found) == 1, f"{case}: one tensor for one query", len(found))
            expect_shape(found[0], (*query.mask.predicted.shape, case.decoder.width), f"{case}: features")
            expect_finite(found[0], f"{case}: features")


@promises.optional
def tells_predicted_places_apart(subject: DecoderSubject) -> None:
    """What it answers differs from place to place."""
    looked_at = 0
    for case in subject.cases():
        if len(case.scene.grid) > 2:
            continue  # positions of a plane may be the same at every step
        looked_at += 1
        randomize(case.encoder)
        randomize(case.decoder)
        query = case.query()
        features = case.features(query).double()
        apart = torch.cdist(features, features) + torch.eye(features.shape[1]) * 1e9
        least = float(apart.min())
        expect(least > 1e-5, f"{case}: other features for another place", f"two places, {least:.1g} apart")
    if not looked_at:
        raise NotApplicable("it takes no grid of one or two axes")


@promises
def trains_every_parameter(subject: DecoderSubject) -> None:
    """A gradient reaches every parameter in every step."""
    for case in subject.cases():
        with weights_of(1):
            model = small_model(case.scene, case.encoder, case.decoder)
        for step in (0, 1):
            loss = model({"stream": case.scene.samples(BATCH, step)}, step=step).loss
            expect_gradients(case.decoder, loss, case)


@promises
def keeps_samples_apart(subject: DecoderSubject) -> None:
    """Samples do not see each other: one alone gets the answers that it gets in a batch."""
    for case in subject.cases():
        query = case.query()
        whole = case.features(query)
        for row in range(BATCH):
            one = slice(row, row + 1)
            expect_close(case.features(_rows(query, one)), whole[one], f"{case}: features of sample {row} alone")


@promises
def keeps_queries_apart(subject: DecoderSubject) -> None:
    """Queries do not see each other: one alone gets the answers that it gets beside another."""
    for case in subject.cases():
        queries = [case.query(2, 0.75, seed=1), case.query(BATCH, 0.25, seed=2)]
        with torch.no_grad():
            together = case.decoder(queries)
        expect(len(together) == 2, f"{case}: two tensors for two queries", len(together))
        for number, (query, found) in enumerate(zip(queries, together, strict=True)):
            expect_close(found, case.features(query), f"{case}: features of query {number}")


@promises
def leaves_its_input_alone(subject: DecoderSubject) -> None:
    """It does not change latents and masks that it is given."""
    for case in subject.cases():
        query, wanted = case.query(), case.query()
        case.features(query)
        expect_equal(query.latents.values, wanted.latents.values, f"{case}: latents after they were decoded")
        expect_equal(query.mask.predicted, wanted.mask.predicted, f"{case}: the mask after it was used")


@promises
def draws_no_global_randomness(subject: DecoderSubject) -> None:
    """Features neither read nor change global random state, in training neither."""
    for case in subject.cases():
        query = case.query()
        case.decoder.train()
        expect_no_global_randomness(lambda case=case, query=query: case.features(query), f"{case}: features")


@promises
def has_the_weights_of_its_seed(subject: DecoderSubject) -> None:
    """Its weights are a function of torch's seed alone."""
    for case, again in zip(subject.cases(), subject.cases(), strict=True):
        expect_equal_weights([case.decoder, again.decoder], case)


@promises
def works_in_float64(subject: DecoderSubject) -> None:
    """It works in float64, and gives what it gives in float32 then."""
    for case in subject.cases():
        single = case.features(case.query(dtype=torch.float32))
        case.encoder.double()
        case.decoder.double()
        double = case.features(case.query(dtype=torch.float64))
        expect(double.dtype == torch.float64, f"{case}: features in float64", double.dtype)
        expect_close(double, single, f"{case}: features in float64", 1e-3)


@promises
def can_be_evaluated_first(subject: DecoderSubject) -> None:
    """It can be evaluated, in inference mode too, before it is trained."""
    for case in subject.cases():
        query = case.query()
        with torch.inference_mode():
            case.decoder.eval()([query])
        (features,) = case.decoder.train()([query])
        if features.requires_grad:
            features.sum().backward()


@promises
def compiles_once(subject: DecoderSubject) -> None:
    """Compiled, it gives the same features, and nothing is compiled again from step to step."""
    case = next(subject.cases())
    queries = [case.query(seed=seed) for seed in range(3)]
    expect_one_graph(case.decoder, lambda number: [part.detach() for part in case.decoder([queries[number]])], case)


def _rows(query: DecoderInput, rows: slice) -> DecoderInput:
    """Some samples of a batch."""
    latents, mask = query.latents, query.mask
    part = Latents(
        latents.values[rows],
        None if latents.index is None else latents.index[rows],
        None if latents.prefix is None else latents.prefix[rows],
    )
    own = Mask(mask.visible[rows], mask.predicted[rows], mask.counted[rows], mask.masked[rows])
    return DecoderInput(query.key, part, own, query.grid)

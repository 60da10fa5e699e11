"""What every encoder promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import Encoder, EncoderInput, Latents, Mask, Tokens, nothing_masked
from mmmask.testing.check import NotApplicable, Promises, Refusals, Subject, expect
from mmmask.testing.comparison import expect_close, expect_equal, expect_finite, expect_shape
from mmmask.testing.component import promise_of_every_component
from mmmask.testing.model import (
    BATCH,
    bytes_kept,
    expect_equal_weights,
    expect_gradients,
    expect_one_graph,
    group,
    small_decoder,
    small_model,
    weights_of,
)
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask.testing.synthetic import Scene, SyntheticModality, scene_of, synthetic, synthetic_scenes
from mmmask_registry import MmmaskError

FEW, MANY = 0.75, 0.25
"""Ratios at which few and many tokens are visible."""
KEPT_AT_MOST = 0.6
"""Share of the memory of three times as many visible tokens; a third would be perfect."""
MASKED_AT_MOST = 0.2
"""Share of the memory of a visible token that a masked one may keep."""


class EncoderSubject(Subject):
    """An encoder; give it a small width and depth.

    Args:
        component: as for every subject.
        modality: an experiment's block `modality`, whose samples it is examined with; by default synthetic samples of
            several grids, of which it must take one.
        settings: of the encoder.
    """

    kind, interface = "encoder", Encoder

    def __init__(
        self,
        component: str | type[Any],
        modality: str | dict[str, Any] | None = None,
        **settings: Any,  # noqa: ANN401 - plain data
    ) -> None:
        super().__init__(component, **settings)
        self.given = None if modality is None else scene_of(modality)

    def scenes(self) -> Iterator[Scene]:
        """Those whose tokens it takes."""
        refusals = Refusals()
        for scene in synthetic_scenes() if self.given is None else [self.given]:
            try:
                encoder = self.encoder(scene)
                with torch.no_grad():
                    encoder([group(scene, scene.tokens(2), scene.mask(2))])
            except MmmaskError as error:
                refusals.add(scene, error)
                continue
            refusals.taken += 1
            yield scene
        refusals.conclude()

    def encoder(self, scene: Scene, seed: int = 0) -> Encoder:
        """A new one, with the weights of a seed.

        Raises:
            MmmaskError: it does not take such tokens.
        """
        with weights_of(seed):
            try:
                return self.component(self.config, embeddings=scene.embeddings)
            except ValueError as error:  # as the core does, which names the model
                raise MmmaskError(str(error)) from error


promises = Promises(EncoderSubject)
promise_of_every_component(promises)


@promises
def gives_every_group_its_latents(subject: EncoderSubject) -> None:
    """Every group gets latents of the encoder's width, in order, with the token that each row belongs to."""
    for scene in subject.scenes():
        encoder = subject.encoder(scene)
        for count, ratio in ((1, FEW), (BATCH, MANY), (BATCH, 0.0)):
            mask = scene.mask(count, ratio)
            with torch.no_grad():
                found = encoder([group(scene, scene.tokens(count), mask)])
            expect(len(found) == 1, f"{scene}: one Latents for one group", len(found))
            (latents,) = found
            expect(isinstance(latents, Latents), f"{scene}: Latents", type(latents).__name__)
            rows = math.prod(scene.grid) if latents.index is None else latents.index.shape[1]
            expect_shape(latents.values, (count, rows, encoder.width), f"{scene}: latents of {count} samples")
            expect_finite(latents.values, f"{scene}: latents")
            if latents.index is not None:
                expect_shape(latents.index, (count, rows), f"{scene}: the tokens of the rows")
                expect(bool((latents.index.diff(dim=1) > 0).all()), f"{scene}: rows in token order", latents.index)
                seen = torch.zeros_like(mask.masked).scatter_(1, latents.index, True)
                expect(bool((seen | mask.masked).all()), f"{scene}: a row for every visible token", "some lack theirs")
            if latents.prefix is not None:
                expect_shape(latents.prefix, (count, latents.prefix.shape[1], encoder.width), f"{scene}: its prefix")


@promises
def gives_every_token_where_nothing_is_masked(subject: EncoderSubject) -> None:
    """With nothing masked all tokens have their latents, and feature maps lay them out on the grid."""
    for scene in subject.scenes():
        encoder, tokens = subject.encoder(scene).eval(), math.prod(scene.grid)
        groups = [group(scene, scene.tokens(2), nothing_masked(2, scene.grid, torch.device("cpu")))]
        with torch.no_grad():
            (latents,), maps = encoder(groups), encoder.feature_maps(groups)
        expect_shape(latents.values, (2, tokens, encoder.width), f"{scene}: latents")
        if latents.index is not None:
            expect_equal(latents.index, torch.arange(tokens).expand(2, -1), f"{scene}: the tokens of the rows")
        expect(len(maps) == 1 and len(maps[0]) > 0, f"{scene}: the maps of one group, one at least", len(maps))
        for number, found in enumerate(maps[0]):
            fits = found.shape[0] == 2 and found.dim() == 2 + len(scene.grid)
            expect(fits, f"{scene}: map {number} as (batch, channels, *grid)", tuple(found.shape))
            expect_finite(found, f"{scene}: map {number}")


@promises
def does_not_see_what_is_masked(subject: EncoderSubject) -> None:
    """Nothing of what is masked reaches the latents."""
    for scene in subject.scenes():
        encoder = subject.encoder(scene)
        for dtype in (None, torch.float32):
            tokens, mask = scene.tokens(BATCH, dtype=dtype), scene.mask(BATCH)
            found, again = (
                _latents(encoder, group(scene, content, mask))
                for content in (tokens, scene.with_other_masked_content(tokens, mask))
            )
            for before, after in zip(found, again, strict=True):
                expect_close(after, before, f"{scene}: latents where masked tokens are others", 1e-6)


@promises
def trains_every_parameter(subject: EncoderSubject) -> None:
    """A gradient reaches every parameter in every step."""
    for scene in subject.scenes():
        encoder = subject.encoder(scene)
        with weights_of(1):
            model = small_model(scene, encoder, small_decoder(scene, encoder.width))
        for step in (0, 1):
            loss = model({"stream": scene.samples(BATCH, step)}, step=step).loss
            expect_gradients(encoder, loss, scene)


@promises
def keeps_samples_apart(subject: EncoderSubject) -> None:
    """Samples do not see each other: one alone has the latents that it has in a batch."""
    for scene in subject.scenes():
        encoder, tokens, mask = subject.encoder(scene), scene.tokens(BATCH), scene.mask(BATCH)
        whole = _latents(encoder, group(scene, tokens, mask))
        for row in range(BATCH):
            one = slice(row, row + 1)
            alone = _latents(encoder, group(scene, *_rows(tokens, mask, one)))
            for found, wanted in zip(alone, whole, strict=True):
                expect_close(found, wanted[one], f"{scene}: latents of sample {row} alone")


@promises
def keeps_groups_apart(subject: EncoderSubject) -> None:
    """EncoderInputs do not see each other: one alone has the latents that it has beside another."""
    for scene in subject.scenes():
        encoder = subject.encoder(scene)
        groups = [
            group(scene, scene.tokens(count, count), scene.mask(count, ratio, count))
            for count, ratio in ((2, FEW), (BATCH, MANY))
        ]
        with torch.no_grad():
            together = encoder(groups)
        expect(len(together) == 2, f"{scene}: two Latents for two groups", len(together))
        for number, (own, latents) in enumerate(zip(groups, together, strict=True)):
            for found, wanted in zip(_parts(latents), _latents(encoder, own), strict=True):
                expect_close(found, wanted, f"{scene}: latents of group {number}")


@promises
def leaves_its_input_alone(subject: EncoderSubject) -> None:
    """It does not change tokens and masks that it is given."""
    for scene in subject.scenes():
        encoder = subject.encoder(scene)
        for dtype in (None, torch.float32):
            tokens, mask = scene.tokens(BATCH, dtype=dtype), scene.mask(BATCH)
            _latents(encoder, group(scene, tokens, mask))
            wanted = scene.tokens(BATCH, dtype=dtype).content
            expect_equal(tokens.content, wanted, f"{scene}: the content after it was encoded")
            expect_equal(mask.masked, scene.mask(BATCH).masked, f"{scene}: the mask after it was used")


@promises
def draws_no_global_randomness(subject: EncoderSubject) -> None:
    """Latents neither read nor change global random state, in training neither."""
    for scene in subject.scenes():
        encoder = subject.encoder(scene).train()
        own = group(scene, scene.tokens(BATCH), scene.mask(BATCH))
        expect_no_global_randomness(lambda encoder=encoder, own=own: _latents(encoder, own), f"{scene}: latents")


@promises
def has_the_weights_of_its_seed(subject: EncoderSubject) -> None:
    """Its weights are a function of torch's seed alone."""
    for scene in subject.scenes():
        expect_equal_weights([subject.encoder(scene), subject.encoder(scene)], scene)


@promises
def works_in_float64(subject: EncoderSubject) -> None:
    """It works in float64, and gives what it gives in float32 then."""
    for scene in subject.scenes():
        encoder, mask = subject.encoder(scene), scene.mask(BATCH)
        single = _latents(encoder, group(scene, scene.tokens(BATCH, dtype=torch.float32), mask))
        double = _latents(encoder.double(), group(scene, scene.tokens(BATCH, dtype=torch.float64), mask))
        for wide, narrow in zip(double, single, strict=True):
            expect(wide.dtype == torch.float64, f"{scene}: latents in float64", wide.dtype)
            expect_close(wide, narrow, f"{scene}: latents in float64", 1e-3)


@promises
def can_be_evaluated_first(subject: EncoderSubject) -> None:
    """It can be evaluated, in inference mode too, before it is trained."""
    for scene in subject.scenes():
        encoder = subject.encoder(scene)
        own = group(scene, scene.tokens(BATCH), scene.mask(BATCH))
        with torch.inference_mode():
            encoder.eval()([own])
        (latents,) = encoder.train()([own])
        torch.stack([part.sum() for part in _parts(latents)]).sum().backward()


@promises
def compiles_once(subject: EncoderSubject) -> None:
    """Compiled, it gives the same latents, and nothing is compiled again from step to step."""
    scene = next(subject.scenes())
    encoder = subject.encoder(scene)

    def step(number: int) -> list[Tensor]:
        (latents,) = encoder([group(scene, scene.tokens(BATCH, number), scene.mask(BATCH, seed=number))])
        return [part.detach() for part in _parts(latents)]

    expect_one_graph(encoder, step, scene)


@promises.optional
def keeps_little_of_masked_tokens(subject: EncoderSubject) -> None:
    """Where it leaves masked tokens out, memory grows with the visible tokens, not with all of them."""
    looked_at = 0
    for small in subject.scenes():
        if (tokens := math.prod(small.grid)) < 12 or _keeps_all(subject, small):
            continue
        looked_at += 1
        few = _memory(subject, small, tokens // 4)
        many = _memory(subject, small, 3 * (tokens // 4))
        share = few / many
        expect(
            share <= KEPT_AT_MOST,
            f"{small}: with a third of the visible tokens at most {KEPT_AT_MOST:.0%} of the memory",
            f"{share:.0%}: {few} bytes, not {many}",
        )
        large = _larger(small)
        if large is None:
            continue
        masked = _memory(subject, large, tokens // 4) - few
        per_masked = masked / (math.prod(large.grid) - tokens)
        per_visible = (many - few) / (2 * (tokens // 4))
        expect(
            per_masked <= MASKED_AT_MOST * per_visible,
            f"{small}: a masked token keeps at most {MASKED_AT_MOST:.0%} of what a visible one does",
            f"{per_masked / per_visible:.0%}: {per_masked:.0f} bytes, not {per_visible:.0f}",
        )
    if not looked_at:
        raise NotApplicable("it keeps all tokens")


def _keeps_all(subject: EncoderSubject, scene: Scene) -> bool:
    mask = scene.mask(2)
    with torch.no_grad():
        (latents,) = subject.encoder(scene)([group(scene, scene.tokens(2), mask)])
    return latents.values.shape[1] > mask.visible.shape[1]


def _memory(subject: EncoderSubject, scene: Scene, visible: int) -> int:
    encoder, mask = subject.encoder(scene), scene.mask(BATCH, 1 - visible / math.prod(scene.grid))
    assert mask.visible.shape[1] == visible
    own = group(scene, scene.tokens(BATCH), mask)
    return bytes_kept(lambda: encoder([own]), encoder)


def _larger(scene: Scene) -> Scene | None:
    """The same tokens on a grid of twice the sides; of a modality that was given None, for its size is its own."""
    if not isinstance(scene.modality, SyntheticModality):
        return None
    spec = scene.modality.spec
    return synthetic(tuple(2 * size for size in scene.grid), spec.patch_size, spec.vocab_size, spec.channels)


def _latents(encoder: Encoder, own: EncoderInput) -> list[Tensor]:
    with torch.no_grad():
        (latents,) = encoder([own])
    return _parts(latents)


def _parts(latents: Latents) -> list[Tensor]:
    return [latents.values] if latents.prefix is None else [latents.values, latents.prefix]


def _rows(tokens: Tokens, mask: Mask, rows: slice) -> tuple[Tokens, Mask]:
    """Some samples of a batch."""
    part = Mask(mask.visible[rows], mask.predicted[rows], mask.counted[rows], mask.masked[rows])
    return replace(tokens, content=tokens.content[rows]), part

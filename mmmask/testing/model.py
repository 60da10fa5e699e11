"""Promises of the modules of a model: encoders, positions, pools, decoders and objectives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmmask.experiment.settings import stream_settings
from mmmask.interfaces import (
    Batch,
    Decoder,
    DecoderInput,
    Embedding,
    Encoder,
    EncoderInput,
    Grid,
    Latents,
    Objective,
    ObjectiveContext,
    Part,
    Pool,
    Positions,
    StepContext,
    Tokens,
    build,
    gather_rows,
    nothing_masked,
)
from mmmask.model.masks import mask_from_bool, mask_of_part
from mmmask.randomness import derive_seed, sample_noise, seeded, seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import Case, NotApplicable
from mmmask.testing.computing import BATCH, CPU, BatchCase, ModuleCase, SequenceCase, randomize
from mmmask.testing.synthetic import Scene, SyntheticModality, chosen, scenes, synthetic
from mmmask_registry import MmmaskError

KEPT_AT_MOST = 0.6
"""Share of the memory of three times as many visible tokens; a third would be perfect."""
MASKED_AT_MOST = 0.2
"""Share of the memory of a visible token that a masked one may keep."""
WIDTH = 48
GRIDS: tuple[tuple[Grid, ...], ...] = (
    ((16,),), ((7,),), ((4, 4),), ((3, 5),), ((2, 4, 4),), ((2, 3, 5),), ((4, 4), (6, 4)), ((1, 4, 4), (2, 4, 4)),
)  # fmt: skip
"""Grids to build them with: one, or those of two streams that share an embedding."""
SMALL = {"name": "vit", "width": 32, "depth": 1, "num_heads": 2}
ENCODERS = ({**SMALL, "depth": 2, "prefix_tokens": 2}, {**SMALL, "depth": 2, "masked_tokens": "replace"})
"""One that leaves masked tokens out and has prefix tokens, one that keeps them all."""
STREAM = "stream"
CLASSES = ("cat", "dog")
DECODER = {"name": "transformer", "width": 16, "depth": 1, "num_heads": 2}


def companion(scene: Scene) -> Scene:
    """A part beside that of a scene: of another grid, with another embedding."""
    spec = scene.modality.spec
    return synthetic(tuple(size + 1 for size in scene.grid), spec.patch_size, channels=spec.channels + 1)


def aligned_embeddings(scene: Scene) -> dict[str, Embedding]:
    """Embeddings of samples that have a part of the scene, and one of its companion."""
    both = scene.embeddings | companion(scene).embeddings
    return {key: replace(embedding, aligned=True) for key, embedding in both.items()}


def aligned_input(scene: Scene, seed: int = 0) -> EncoderInput:
    """Samples of these two parts, half of each masked; the companion's content is that of the seed."""
    both, seeds = (scene, companion(scene)), (0, seed)
    parts = (Part(of.modality.embedding, of.tokens(BATCH, one)) for of, one in zip(both, seeds, strict=True))
    return EncoderInput(tuple(parts), mask_from_bool(torch.cat([of.mask(BATCH).masked for of in both], dim=1)))


class EncoderCase(SequenceCase):
    """An encoder of the tokens of one scene."""

    kind, interface, extras = "encoder", Encoder, ("modality",)
    scene: Scene

    def _situations(self) -> list[dict[str, Any]]:
        return [{"scene": scene} for scene in scenes(self.options.get("modality"))]

    def _context(self) -> dict[str, Any]:
        return {"embeddings": self.scene.embeddings}

    def _input(
        self, seed: int = 0, count: int = BATCH, ratio: float = 0.5, dtype: torch.dtype | None = None
    ) -> EncoderInput:
        return self.scene.input(self.scene.tokens(count, seed, dtype), self.scene.mask(count, ratio, seed))

    def _given_in(self, dtype: torch.dtype) -> list[EncoderInput]:
        return [self._input(dtype=dtype)]

    def _outputs(self, given: list[EncoderInput]) -> list[Tensor]:
        """Latents of tokens and prefix tokens."""
        parts = [(latents.values, latents.prefix) for latents in self.component(given)]
        return [part for pair in parts for part in pair if part is not None]

    def gives_every_input_its_latents(self) -> None:
        """Every input gets finite latents of the encoder's width, in order, with the token that each belongs to."""
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (BATCH, 0.0)):
            given = self._input(0, count, ratio)
            (latents,), masked = self.component([given]), given.mask.masked
            rows = (masked if latents.index is None else latents.index).shape[1]
            expect.finite(latents.values, (count, rows, self.component.width), f"latents of {count} samples")
            if latents.index is not None:
                expect.shape(latents.index, (count, rows), "the tokens of the latents")
                expect.that((latents.index.diff(dim=1) > 0).all(), "latents in token order", latents.index)
                seen = torch.zeros_like(masked).scatter_(1, latents.index, True)
                expect.that((seen | masked).all(), "a latent for every visible token", "some have none")
            if latents.prefix is not None:
                shape = (count, latents.prefix.shape[1], self.component.width)
                expect.shape(latents.prefix, shape, "latents of prefix tokens")

    def gives_every_token_where_nothing_is_masked(self) -> None:
        """With nothing masked all tokens have their latents, and feature maps lay them out on the grid."""
        scene, tokens = self.scene, math.prod(self.scene.grid)
        self.component.eval()
        given = scene.input(scene.tokens(2), nothing_masked(2, scene.grid, CPU))
        (latents,), (maps,) = self.component([given]), self.component.feature_maps([given])
        expect.shape(latents.values, (2, tokens, self.component.width), "latents")
        if latents.index is not None:
            expect.same(latents.index, torch.arange(tokens).expand(2, -1), "the tokens of the latents")
        expect.that(maps, "one map or more", "none")
        for number, found in enumerate(maps):
            fits = found.shape[0] == 2 and found.dim() == 2 + len(scene.grid)
            expect.that(fits, f"map {number} as (batch, channels, *grid)", tuple(found.shape))
            expect.finite(found, found.shape, f"map {number}")

    def gives_the_stages_asked_for(self) -> None:
        """Outputs of the stages asked for come with the latents, in the order asked for; every stage is called."""
        called, stages = set(), list(self.component.stages)
        for number, stage in enumerate(stages):
            stage.register_forward_hook(lambda *_, number=number: called.add(number))
        expect.that(stages, "one stage or more", "none")
        asked = (len(stages) - 1, 0)
        (latents,), (turned,) = (self.component(self._given(), order) for order in (asked, asked[::-1]))
        expect.equal(sorted(called), list(range(len(stages))), "stages called")
        expect.equal(len(latents.stages), 2, "outputs of the two stages asked for")
        for found in latents.stages:
            expect.shape(found, (*latents.values.shape[:2], found.shape[-1]), "the output of a stage")
        expect.same(turned.stages[::-1], latents.stages, "stages asked for in the other order")

    def knows_its_modules_by_depth(self) -> None:
        """`by_depth` has a list for each stage, with that stage in it, and a last one of what follows the stages."""
        encoder, stages = self.component, list(self.component.stages)
        depths, last = encoder.by_depth(), len(stages)
        expect.equal(len(depths), last + 1, "lists of by_depth, one more than stages")
        lost = [number for number, stage in enumerate(stages) if all(part is not stage for part in depths[number])]
        expect.none(lost, "each stage in its own list")
        listed = {
            id(part): at for at, modules in enumerate(depths) for module in modules for part in module.parameters()
        }
        within = {id(part) for stage in stages for part in stage.parameters()}
        outside = {name: part for name, part in encoder.named_parameters() if id(part) not in within}
        plain = self._by_stage()
        for name, part in outside.items():
            at, kept = listed.get(id(part)), part.detach().clone()
            with torch.no_grad():
                part.add_(torch.randn(part.shape, generator=seeded_generator("weights")))
                moved = [not one.equal(other) for one, other in zip(plain, self._by_stage(), strict=True)]
                part.copy_(kept)
            if any(moved[:-1]):
                expect.that(at is None or at <= moved.index(True), f"{name} listed no deeper than what it changes", at)
            elif moved[-1]:
                expect.that(at == last, f"{name}, which changes no stage, in the last list", "it is not there")

    @torch.no_grad()
    def _by_stage(self) -> list[Tensor]:
        """Outputs of all stages, and the latents."""
        (latents,) = self.component(self._given(), range(len(self.component.stages)))
        return [*latents.stages, torch.cat([latents.values, *([] if latents.prefix is None else [latents.prefix])], 1)]

    @torch.no_grad()
    def encodes_parts_together(self) -> None:
        """Parts of a sample are encoded together, their tokens numbered part after part; or they are refused."""
        given, other = aligned_input(self.scene), aligned_input(self.scene, seed=1)
        try:
            self.component = self.subject(self.config, embeddings=aligned_embeddings(self.scene)).eval()
            (latents,), (changed,) = self.component([given]), self.component([other])
        except MmmaskError as error:
            raise NotApplicable(str(error)) from error
        (rows, tokens), masked = given.mask.masked.shape, given.mask.masked
        index = torch.arange(tokens).expand(rows, -1) if latents.index is None else latents.index
        expect.finite(latents.values, (*index.shape, self.component.width), "latents of two parts")
        expect.that((index.diff(dim=1) > 0).all(), "latents in the order of parts and tokens", index)
        seen = torch.zeros_like(masked).scatter_(1, index, True)
        expect.that((seen | masked).all(), "a latent for every visible token of both parts", "some have none")
        alike = torch.isclose(latents.values, changed.values).all(dim=2) & (index < math.prod(self.scene.grid))
        expect.that(not alike.any(), "latents of one part that depend on the other", "some do not")

    def does_not_see_what_is_masked(self) -> None:
        """Nothing of what is masked reaches the latents."""
        scene, mask = self.scene, self.scene.mask(BATCH)
        for dtype in (None, torch.float32):
            tokens = scene.tokens(BATCH, dtype=dtype)
            others = scene.with_other_masked_content(tokens, mask)
            one, other = (self._results([scene.input(content, mask)]) for content in (tokens, others))
            expect.same(other, one, "latents where masked tokens are others", 1e-6)

    def keeps_little_of_masked_tokens(self) -> None:
        """Memory grows with the visible tokens, not with all of them, where masked tokens are left out."""
        small, tokens, given = self.scene, math.prod(self.scene.grid), self._input()
        if tokens < 12 or self.component([given])[0].values.shape[1] > given.mask.visible.shape[1]:
            raise NotApplicable("it keeps all tokens")
        few, many = self._bytes_kept(small, tokens // 4), self._bytes_kept(small, 3 * (tokens // 4))
        expected = f"with a third of the visible tokens at most {KEPT_AT_MOST:.0%} of the memory"
        expect.that(few <= KEPT_AT_MOST * many, expected, f"{few / many:.0%}: {few} bytes, not {many}")
        if not isinstance(small.modality, SyntheticModality):
            return  # the size of any other is its own
        config = small.modality.config.model_dump(exclude={"name"})
        large = synthetic(**config | {"grid": tuple(2 * size for size in small.grid)})
        masked = (self._bytes_kept(large, tokens // 4) - few) / (math.prod(large.grid) - tokens)
        visible = (many - few) / (2 * (tokens // 4))
        expected = f"a masked token keeps at most {MASKED_AT_MOST:.0%} of what a visible one does"
        expect.that(masked <= MASKED_AT_MOST * visible, expected, f"{masked:.0f} bytes, not {visible:.0f}")

    def _bytes_kept(self, scene: Scene, visible: int) -> int:
        """Memory that a forward keeps for its backward, without parameters and buffers."""
        case = replace(self, situation={"scene": scene})
        given, encoder = case._input(ratio=1 - visible / math.prod(scene.grid)), case.component
        own = {tensor.untyped_storage().data_ptr() for tensor in [*encoder.parameters(), *encoder.buffers()]}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            latents = encoder([given])
        del latents  # until now it kept what was saved, so that no two had one address
        return sum(kept.values())


class PoolCase(ModuleCase, BatchCase):
    """A pool of the latents of seven tokens and some prefix tokens."""

    kind, interface = "pool", Pool
    num_prefix: int

    def _situations(self) -> list[dict[str, Any]]:
        return [{"num_prefix": 0}, {"num_prefix": 2}]

    def _context(self) -> dict[str, Any]:
        return {"width": 24}

    def _given(self, seed: int = 0) -> Latents:
        drawn = torch.randn(BATCH, self.num_prefix + 7, 24, generator=seeded_generator("latents", seed))
        prefix, values = drawn.tensor_split([self.num_prefix], dim=1)
        return Latents(values, torch.arange(7).expand(BATCH, -1), prefix if self.num_prefix else None)

    def gives_a_vector_per_sample(self) -> None:
        """Every sample gets one finite vector of the latents' width."""
        (found,) = self._results(self._given())
        expect.finite(found, (BATCH, 24), "vectors")


class PositionsCase(ModuleCase):
    """Positions of some grids, without and with prefix tokens."""

    kind, interface = "positions", Positions
    grids: tuple[Grid, ...]
    num_prefix: int
    dtypes = ((torch.float64, 1e-5), (torch.bfloat16, 2e-2), (torch.float32, 2e-2))

    def _situations(self) -> list[dict[str, Any]]:
        return [{"grids": grids, "num_prefix": num_prefix} for grids in GRIDS for num_prefix in (0, 2)]

    def _context(self) -> dict[str, Any]:
        return {"width": WIDTH, "heads": 4, **self.situation}

    def _given(self, seed: int = 0) -> list[tuple[Grid, Tensor]]:
        """Every grid with half of its tokens, in order, of several samples: (batch, tokens)."""
        given = []
        for grid in self.grids:
            tokens = math.prod(grid)
            ranks = torch.rand(BATCH, tokens, generator=seeded_generator("rows", tokens, seed)).argsort(1)
            given.append((grid, ranks[:, : max(1, tokens // 2)].sort(dim=1).values))
        return given

    def _outputs(self, given: list[tuple[Grid, Tensor]]) -> list[Tensor]:
        at = self.component
        parts = [(at(grid), at.prefix(), at.bias(grid, None), at.bias(grid, some)) for grid, some in given]
        return [part for answers in parts for part in answers if part is not None]

    def fits_every_grid(self) -> None:
        """Additions to tokens, prefix tokens and attention fit the grid, of whichever stream."""
        at = self.component
        for grid, some in self._given():
            added, prefix, bias, part = at(grid), at.prefix(), at.bias(grid, None), at.bias(grid, some)
            expect.that(added is not None or bias is not None, "something added to tokens or to attention", "nothing")
            if added is not None:
                expect.finite(added, (math.prod(grid), WIDTH), f"positions of {grid}")
            if prefix is not None:
                expect.shape(prefix, (self.num_prefix, WIDTH), "positions of the prefix")
            expect.that((bias is None) == (part is None), "a bias for all tokens and for some", "for one of them")
            if bias is not None:
                side, fewer = math.prod(grid) + self.num_prefix, some.shape[1] + self.num_prefix
                expect.shape(bias, (len(bias), side, side), f"bias (heads, R, R) of {grid}")
                expect.shape(part, (BATCH, len(bias), fewer, fewer), f"bias (batch, heads, R, R) of some of {grid}")

    def biases_some_as_among_all(self) -> None:
        """The bias of some tokens is that part of the bias of all."""
        randomize(self.component)
        for grid, some in self._given():
            whole, part = self.component.bias(grid, None), self.component.bias(grid, some)
            if whole is None:
                raise NotApplicable("they add nothing to attention")
            at = torch.cat([torch.arange(self.num_prefix).expand(BATCH, -1), some + self.num_prefix], dim=1)
            wanted = torch.stack([whole[:, index][:, :, index] for index in at])
            expect.same(part, wanted, f"the bias of some tokens of {grid}", 1e-6)

    def tells_places_apart(self) -> None:
        """They tell the tokens of a line or a plane apart."""
        randomize(self.component)
        for grid in self.grids:
            if len(grid) > 2:
                raise NotApplicable("those of a plane may be the same in every frame")
            added, bias = self.component(grid), self.component.bias(grid, None)
            told = [] if added is None else [added]
            if bias is not None:
                told.append(bias[:, self.num_prefix :, self.num_prefix :].transpose(0, 1).flatten(1))
            expect.apart(torch.cat(told, dim=1), 1e-6, f"other positions for every token of {grid}")


class BehindEncoder(Case):
    """A component behind an encoder, with the samples of one scene."""

    scene: Scene
    block: dict[str, Any]

    def _situations(self) -> list[dict[str, Any]]:
        found = scenes(self.options.get("modality"))[::2]
        return [{"scene": scene, "block": block} for scene in found for block in self._blocks()]

    def _blocks(self) -> Sequence[dict[str, Any]]:
        """Encoders to stand behind."""
        return [SMALL]

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder in front."""
        with seeded("weights", 1):
            return build("encoder", chosen("encoder", self.block), embeddings=self.embeddings)

    @property
    def embeddings(self) -> dict[str, Embedding]:
        """Embeddings that encoder and component are built with."""
        return self.scene.embeddings


def asked_in_both_orders(shown: EncoderInput, latents: Latents) -> list[list[DecoderInput]]:
    """Inputs that ask for all tokens of both parts, and the same ones of samples whose parts are in the other order."""
    rows, tokens = shown.mask.masked.shape
    first = math.prod(shown.layout[0][1])
    index = torch.arange(tokens).expand(rows, -1) if latents.index is None else latents.index
    moved, order = torch.where(index < first, index + tokens - first, index - first).sort(dim=1)
    moved = None if latents.index is None else moved  # all tokens are there, in order
    values, *stages = (gather_rows(part, order) for part in (latents.values, *latents.stages))
    turned = replace(latents, values=values, index=moved, stages=tuple(stages))

    def asked(number: int, latents: Latents, turn: bool) -> DecoderInput:
        key, grid = shown.layout[number]
        mask = mask_of_part(shown.mask, number * first, math.prod(grid), None)
        layout = shown.layout[::-1] if turn else shown.layout
        return DecoderInput(key, latents, mask, grid, None, layout, 1 - number if turn else number)

    return [[asked(number, found, found is turned) for number in (0, 1)] for found in (latents, turned)]


class DecoderCase(BehindEncoder, SequenceCase):
    """A decoder behind small ViTs, or the `encoder` that is given."""

    kind, interface, extras = "decoder", Decoder, ("modality", "encoder")

    def _blocks(self) -> Sequence[dict[str, Any]]:
        return ENCODERS if self.options.get("encoder") is None else [self.options["encoder"]]

    def _context(self) -> dict[str, Any]:
        return {"embeddings": self.embeddings, "latent_width": self.encoder.width}

    def _input(self, seed: int = 0, count: int = BATCH, ratio: float = 0.5) -> DecoderInput:
        """Input as the model would give it."""
        scene, mask = self.scene, self.scene.mask(count, ratio, seed)
        depth, wanted = len(self.encoder.stages), self.component.latent_stages
        with torch.no_grad():
            shown = [scene.input(scene.tokens(count, seed), mask)]
            (latents,) = self.encoder(shown, range(depth - wanted, depth))
        return DecoderInput(scene.modality.embedding, latents, mask, scene.grid)

    def _outputs(self, given: list[DecoderInput]) -> list[Tensor]:
        return self.component(given)

    def answers_every_input(self) -> None:
        """Every input gets finite features of the decoder's width for all predicted tokens, in order."""
        for count, ratio in ((1, 0.75), (BATCH, 0.25), (2, 0.0)):
            given = self._input(0, count, ratio)
            (found,) = self._results([given])
            expect.finite(found, (*given.mask.predicted.shape, self.component.width), "features")

    @torch.no_grad()
    def knows_latents_by_layout(self) -> None:
        """Latents of several parts are told apart by `layout`, whatever the order of parts; or they are refused."""
        embeddings, shown = aligned_embeddings(self.scene), aligned_input(self.scene)
        encoder = build("encoder", chosen("encoder", self.block), embeddings=embeddings).eval()
        try:
            self.component = self.subject(self.config, embeddings=embeddings, latent_width=encoder.width).eval()
            randomize(self.component)
            depth = len(encoder.stages)
            (latents,) = encoder([shown], range(depth - self.component.latent_stages, depth))
            answers = [self.component(asked) for asked in asked_in_both_orders(shown, latents)]
        except MmmaskError as error:
            raise NotApplicable(str(error)) from error
        for found, (_, grid) in zip(answers[0], shown.layout, strict=True):
            expect.finite(found, (BATCH, math.prod(grid), self.component.width), "features of a part")
        expect.same(answers[1], answers[0], "features where parts are in the other order", expect.CLOSE)

    def tells_predicted_places_apart(self) -> None:
        """Its answers differ from place to place."""
        if len(self.scene.grid) > 2:
            raise NotApplicable("positions of a plane may be the same in every frame")
        randomize(self.encoder)
        randomize(self.component)
        expect.apart(self._results(self._given())[0], 1e-5, "other features for another place")


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

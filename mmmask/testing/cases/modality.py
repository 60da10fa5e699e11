"""Promises of a modality."""

from __future__ import annotations

import copy
import math
import pickle
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmmask.interfaces import PLAIN, BadSample, Modality, Preparation, SourceFile, View
from mmmask.randomness import seeded_generator
from mmmask.testing import expect
from mmmask.testing.check import NotApplicable
from mmmask.testing.computing import PureCase
from mmmask.testing.synthetic import Scene

TEXT = "What a source of texts would load. "

BROKEN = (b"", b"not what its name says", bytes(5000), b"\xff\xfe\x00" * 999)

VIEWS = 3, 2
"""Clips, and crops of each."""

SEEDS = 5

ALIKE = 0.3
"""Correlation of values, or share of equal ids, of which crops of noise that do not overlap have about none."""


def prepared(preparation: Preparation, loaded: Any, seed: int | None = 0) -> Tensor:  # noqa: ANN401 - of a source
    """The sample that a worker makes: a function of the settings, of what was loaded and of the view."""
    views = [PLAIN if seed is None else View(seeded_generator(part, seed)) for part in ("decode", "prepare")]
    return preparation.prepare(preparation.decode(loaded, views[0]), views[1])


class ModalityCase(PureCase):
    """A modality; `loaded` is what a source hands to its preparation, such as a `SourceFile`.

    Without it several arrays are tried, and a text; where the preparation takes none of these, nothing is examined of
    how it decodes.
    """

    kind, interface, also, extras = "modality", Modality, (Preparation,), ("loaded",)

    @property
    def scene(self) -> Scene:
        """Its samples."""
        return Scene(self.component)

    @cached_property
    def preparation(self) -> Preparation:
        """Its worker side."""
        return self.component.preparation

    def _try_out(self) -> None:
        """Whatever is loaded, a modality is examined."""

    def _given(self, seed: int = 0) -> Any:  # noqa: ANN401 - whatever a source may give
        """Something that a source loads, and seeds of its samples."""
        return copy.deepcopy(self._loadable()), (None, seed, seed + 1)

    def _results(self, given: Any) -> list[Tensor]:  # noqa: ANN401
        """Prepared samples, one of them without a generator."""
        loaded, seeds = given
        return [prepared(self.preparation, loaded, seed) for seed in seeds]

    def _batches(self, count: int = 2) -> Iterator[Tensor]:
        """Samples of every dtype that it may be given: ids, or stored integers and floating point."""
        batch = self.scene.samples(count)
        yield batch
        if not self.scene.holds_ids:
            if batch.is_floating_point() and not self.component.spec.gaps:
                yield batch.round().to(torch.int16)
            yield from (batch.to(dtype) / self.component.spec.scale for dtype in (torch.float32, torch.float64))

    def _loadable(self) -> Any:  # noqa: ANN401 - whatever a source may give
        """Something that the preparation makes a sample of."""
        if self.options.get("loaded") is not None:
            return self.options["loaded"]
        for candidate in self._candidates():
            try:
                sample = prepared(self.preparation, candidate, None)
            except Exception:  # what is not meant for it may end in any error
                continue
            if isinstance(sample, Tensor) and tuple(sample.shape) == self.component.sample_shape:
                return candidate
        raise NotApplicable("give loaded=, what a source would hand to its preparation")

    def _candidates(self) -> Iterator[Any]:
        channels, *extent = self.component.sample_shape
        for factor in (2, 1):  # larger than a sample, to be cut or resized, and as large
            shape = (channels, *(factor * size for size in extent))
            drawn = torch.randint(self.component.spec.vocab_size or 256, shape, generator=seeded_generator("loaded"))
            for whole in [drawn] if self.scene.holds_ids else [drawn.to(torch.uint8), drawn.float() / 255]:
                yield from (whole, whole.movedim(0, -1).contiguous().numpy(), whole[0], whole[0].numpy())
        yield TEXT * math.prod(extent)

    def has_sizes_that_agree(self) -> None:
        """Its grid, token spec, sample shape and tokens agree with one another."""
        modality, spec, shape = self.component, self.component.spec, self.component.sample_shape
        for batch in self._batches():
            tokens = modality.tokenize(batch)
            expect.shape(tokens.content, (2, math.prod(tokens.grid), spec.content_dim), "content of two samples")
            grids = [modality.grid(shape), modality.grid(batch.shape)]
            expect.equal(grids, [tokens.grid] * 2, "grids of a sample and of a batch")
            expect.equal(tokens.spec, spec, "the spec of its tokens")
        expect.equal(len(spec.patch_size), len(modality.grid(shape)), "numbers of patch_size, as of the grid")
        expect.equal(shape[0], spec.channels, "channels, with which sample_shape starts")
        for name in ("mean", "std"):
            values = getattr(spec, name)
            expect.that(len(values) in (0, spec.channels), f"{name}: nothing, or {spec.channels} numbers", values)
        expect.equal(hash(modality.spec), hash(spec), "hash of the spec, a key of dictionaries")
        expect.that(modality.embedding, "a key of its embedding", "an empty one")

    def detokenizes_what_it_tokenizes(self) -> None:
        """`tokenize` and `detokenize` invert each other, whatever the dtype, which they keep."""
        for batch in self._batches():
            tokens = self.component.tokenize(batch)
            back = self.component.detokenize(tokens.content, tokens.grid)
            expect.equal([tokens.content.dtype, back.dtype], [batch.dtype] * 2, "dtypes of tokens and samples")
            expect.same(self.component.tokenize(back).content, tokens.content, "tokens of detokenized tokens")
            if tokens.content.numel() == batch.numel():
                expect.same(back, batch, "samples of their tokens")

    def only_rearranges(self) -> None:
        """`tokenize` only rearranges: every number of a sample is in its tokens, equally often."""
        for batch in self._batches():
            content = self.component.tokenize(batch).content
            times, rest = divmod(content.numel(), batch.numel())
            if rest or not times:
                raise NotApplicable("tokens hold other numbers than a sample does")
            wanted = batch.flatten(1).repeat(1, times).sort().values
            expect.same(content.flatten(1).sort().values, wanted, f"{batch.dtype}: the numbers of a sample, sorted")

    def tokenizes_every_sample_by_itself(self) -> None:
        """A sample's tokens do not depend on the rest of the batch, and a batch of one is a batch."""
        for batch in self._batches(3):
            alone = torch.cat([self.component.tokenize(batch[row : row + 1]).content for row in range(3)])
            expect.same(alone, self.component.tokenize(batch).content, f"{batch.dtype}: tokens of samples one by one")

    def refuses_samples_of_another_size(self) -> None:
        """A batch whose shape does not fit is refused with a ValueError."""
        sample = self.scene.samples(1)
        wrong = [sample[0], sample.unsqueeze(0)]
        for axis, patch in enumerate(reversed(self.component.spec.patch_size), start=1):
            if patch > 1 and axis < sample.dim() - 1:
                wrong.append(torch.cat([sample, sample.narrow(-axis, 0, 1)], dim=-axis))
        for batch in wrong:
            expected = f"ValueError for {tuple(batch.shape)}, where samples are {tuple(sample.shape[1:])}"
            expect.raises(ValueError, lambda batch=batch: self.component.tokenize(batch), expected)

    def embeds_every_token_by_itself(self) -> None:
        """Its embedding gives every token a vector, of that token alone."""
        tokens = self.component.tokenize(self.scene.samples(2))
        count = math.prod(tokens.grid)
        for width in (24, 32):
            embedding = self.component.build_embedding(width)
            with torch.no_grad():
                whole = embedding(tokens.values())
                some = embedding(tokens.values(torch.arange(0, count, 2).expand(2, -1)))
            expect.finite(whole, (2, count, width), "embedded tokens")
            expect.same(some, whole[:, ::2], "every other token, embedded without the rest", expect.CLOSE)

    def holds_no_weights(self) -> None:
        """It holds no weights, and its worker side no tensors: nothing of them would be moved, trained or saved."""
        self.component.tokenize(self.scene.samples(2))
        expect.not_held(Tensor | nn.Module, self.component, self.component.preparation)

    def guesses_from_visible_tokens(self) -> None:
        """The simplest guess is made of visible tokens alone, in the unit of the source."""
        scene = self.scene
        if scene.holds_ids or math.prod(scene.grid) < 2:
            raise NotApplicable("of ids the loss makes the guess" if scene.holds_ids else "a sample is one token")
        for dtype in (None, torch.float32):
            tokens, mask = scene.tokens(2, dtype=dtype), scene.mask(2)
            guess = self.component.baseline(tokens, mask)
            expect.finite(guess, (*mask.predicted.shape, self.component.spec.content_dim), "guesses at masked tokens")
            again = self.component.baseline(scene.with_other_masked_content(tokens, mask), mask)
            expect.same(again, guess, "guesses where masked tokens are others")

    def draws_pictures(self) -> None:
        """Pictures are uint8 (height, width, 3), of ids also where one stands for a masked token."""
        spec, sample = self.component.spec, self.scene.samples(1)[0]
        ids = spec.vocab_size is not None
        for shown in [sample, torch.full_like(sample, spec.vocab_size)] if ids else [sample.float() / spec.scale]:
            try:
                picture = self.preparation.show(shown)
            except NotImplementedError as error:
                raise NotApplicable(str(error)) from error
            expect.equal(type(picture), np.ndarray, "type of a picture")
            expect.equal((str(picture.dtype), *picture.shape[2:]), ("uint8", 3), "dtype and colours of a picture")

    def names_endings_in_lower_case(self) -> None:
        """Its worker side names file endings in lower case, with their dot."""
        endings = self.preparation.extensions
        expect.equal(endings, tuple(f".{ending.lower().lstrip('.')}" for ending in endings), "a tuple of endings")

    def pickles_its_worker_side(self) -> None:
        """A copy of its worker side out of a pickle prepares the same samples."""
        preparation, samples = self.preparation, list(self.scene.samples(2))
        again = pickle.loads(pickle.dumps(preparation))
        expect.equal(again.extensions, preparation.extensions, "extensions of the copy")
        expect.same(again.collate(samples), preparation.collate(samples), "a batch that the copy collates")
        try:
            loaded = self._loadable()
        except NotApplicable:
            return
        expect.same(prepared(again, loaded), prepared(preparation, loaded), "a sample that the copy prepares")

    def prepares_samples_that_fit(self) -> None:
        """Prepared samples have the sample shape, and a batch of them becomes tokens with finite values."""
        samples = self._results(self._given())
        for sample in samples:
            expect.shape(sample, self.component.sample_shape, "a prepared sample")
            expect.equal(sample.dtype, samples[0].dtype, "dtype of every sample")
        batch = self.preparation.collate(samples)
        expect.shape(batch, (3, *self.component.sample_shape), "a batch of three")
        self._expect_values(batch)

    def has_values_in_any_dtype(self) -> None:
        """Tokens of every dtype have finite normalised values, and raw ones within the spec's `range`."""
        for batch in self._batches():
            self._expect_values(batch)
        tokens, spec = self.component.tokenize(self.scene.samples(2)), self.component.spec
        raw = tokens.raw()
        fits = tokens.normalized or torch.equal(spec.clamp(raw).nan_to_num(), raw.nan_to_num())
        expect.that(fits, f"raw values within {spec.range}", f"{float(raw.min()):.3g} to {float(raw.max()):.3g}")

    def _expect_values(self, batch: Tensor) -> None:
        tokens, spec = self.component.tokenize(batch), self.component.spec
        if spec.vocab_size is not None:
            highest = spec.vocab_size - (not spec.gaps)
            fits = (tokens.content >= 0).all() and (tokens.content <= highest).all()
            expect.that(fits and not batch.is_floating_point(), f"ids in 0 .. {highest}", "others")
            return
        values, what = tokens.values(), f"normalised values of {batch.dtype}"
        expect.that(values.is_floating_point(), f"{what}, floating point", values.dtype)
        expect.finite(values.nan_to_num() if spec.gaps else values, values.shape, what)

    def prepares_in_several_threads(self) -> None:
        """One object of its worker side serves several threads at once."""
        preparation, alone, loaded = self.preparation, replace(self).preparation, self._loadable()
        wanted = {seed: expect.fingerprint(prepared(alone, loaded, seed)) for seed in range(expect.THREADS)}
        expect.same_in_threads(lambda seed: expect.fingerprint(prepared(preparation, loaded, seed)), wanted, "samples")

    def decodes_clips_as_one_by_one(self) -> None:
        """Several clips of a sample are those that are decoded one by one, and crops of them fit."""
        loaded, clips, crops = self._given()[0], *VIEWS
        found = self.preparation.decode_clips(loaded, clips)
        expect.equal(len(found), clips, "number of clips")
        looks = [View(index=number, of=crops) for number in range(crops)]
        for number, clip in enumerate(found):
            alone = self.preparation.decode(loaded, View(index=number, of=clips))
            expect.equal(expect.fingerprint(clip), expect.fingerprint(alone), f"clip {number}, as it is decoded alone")
            for look in looks:
                crop = self.preparation.prepare(clip, look)
                expect.shape(crop, self.component.sample_shape, "a crop")
                expect.same(self.preparation.prepare(alone, look), crop, "the same crop again")

    def moves_with_the_geometry_alone(self) -> None:
        """Windows, crops and flips are those of `view.geometry`, which aligned parts share, whatever its appearance."""
        likeness = []
        for seed in range(SEEDS):
            one, other = (self._aligned(seed, appearance).double().nan_to_num().flatten() for appearance in (0, 1))
            equal = float((one == other).double().mean())
            same = self.scene.holds_ids or equal == 1
            likeness.append(equal if same else abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])))
        found = sorted(likeness)[SEEDS // 2]
        expect.that(found > ALIKE, f"samples of one geometry alike by {ALIKE:.0%} or more", f"{found:.0%}")

    def _aligned(self, geometry: int, appearance: int) -> Tensor:
        """A sample as a part beside others is prepared."""
        views = [
            View(seeded_generator(use, appearance), geometry=seeded_generator(use, "geometry", geometry))
            for use in ("decode", "prepare")
        ]
        return self.preparation.prepare(self.preparation.decode(copy.deepcopy(self._loadable()), views[0]), views[1])

    def calls_broken_files_bad_samples(self) -> None:
        """A file that it cannot read is a BadSample, whatever is in the file."""
        if not self.preparation.extensions:
            raise NotApplicable("it reads no files")
        for ending in self.preparation.extensions:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"broken{ending}"
                file, expected = SourceFile(str(path)), f"BadSample for a {ending} that is not there"
                expect.raises(BadSample, lambda file=file: prepared(self.preparation, file), expected)
                for content in BROKEN:
                    path.write_bytes(content)
                    try:
                        sample = prepared(self.preparation, file)
                    except BadSample:
                        continue
                    expect.shape(sample, self.component.sample_shape, "BadSample, or a sample")

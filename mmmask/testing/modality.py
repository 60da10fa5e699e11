"""What every modality promises, and its worker side, the preparation."""

from __future__ import annotations

import copy
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmmask.interfaces import PLAIN, BadSample, Modality, Preparation, SourceFile, View
from mmmask.randomness import seeded_generator
from mmmask.testing.check import NotApplicable, Unmet, expect, promise
from mmmask.testing.compare import (
    expect_close,
    expect_equal,
    expect_finite,
    expect_shape,
    in_threads,
)
from mmmask.testing.computing import PureCase
from mmmask.testing.synthetic import Scene

THREADS = 4


class ModalityCase(PureCase):
    """A modality; `loaded` is what a source hands to its preparation, such as a `SourceFile`.

    Without it several arrays are tried, and a text; where the preparation takes none of these, nothing is examined of
    how it decodes.
    """

    kind, interface, extras = "modality", Modality, {"loaded": None}
    also = (Preparation,)

    @property
    def scene(self) -> Scene:
        """Its samples."""
        return Scene(self.component)

    @cached_property
    def preparation(self) -> Preparation:
        """Its worker side."""
        return self.component.preparation

    def try_out(self) -> None:
        """Whatever is loaded, a modality is examined."""

    def given(self, seed: int = 0) -> Any:  # noqa: ANN401 - whatever a source may give
        """What a source loads, and seeds of its samples."""
        return copy.deepcopy(self.loadable()), (None, seed, seed + 1)

    def results(self, given: Any) -> list[Tensor]:  # noqa: ANN401
        """Prepared samples, one of them without a generator."""
        loaded, seeds = given
        return [prepared(self.preparation, loaded, seed) for seed in seeds]

    def batches(self, count: int = 2) -> Iterator[Tensor]:
        """Samples of every dtype that it may be given: ids, or stored integers and floating point."""
        batch = self.scene.samples(count)
        yield batch
        if self.scene.holds_ids:
            return
        if batch.is_floating_point() and not self.component.spec.gaps:
            yield batch.round().to(torch.int16)
        yield from (batch.to(dtype) / self.component.spec.scale for dtype in (torch.float32, torch.float64))

    def loadable(self) -> Any:  # noqa: ANN401 - whatever a source may give
        """Something that the preparation makes a sample of.

        Raises:
            NotApplicable: none of what was tried.
        """
        if self.subject.extras["loaded"] is not None:
            return self.subject.extras["loaded"]
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
        for factor in (2, 1):
            shape = (channels, *(factor * size for size in extent))
            top = self.component.spec.vocab_size or 256
            drawn = torch.randint(top, shape, generator=seeded_generator("loaded"))
            stored = [drawn] if self.scene.holds_ids else [drawn.to(torch.uint8), drawn.float() / 255]
            for whole in stored:
                yield from (whole, whole.movedim(0, -1).contiguous().numpy(), whole[0], whole[0].numpy())
        yield "What a source of texts would load. " * math.prod(extent)

    @promise
    def has_sizes_that_agree(self) -> None:
        """Its grid, token spec, sample shape and tokens agree with one another."""
        modality, spec, shape = self.component, self.component.spec, self.component.sample_shape
        for batch in self.batches():
            tokens = modality.tokenize(batch)
            expect_shape(tokens.content, (2, math.prod(tokens.grid), spec.content_dim), "content of two samples")
            for of, grid in (("a sample", modality.grid(shape)), ("a batch", modality.grid(batch.shape))):
                expect(grid == tokens.grid, f"the grid of {of}: {tokens.grid}, as of its tokens", grid)
            expect(tokens.spec == spec, f"the spec of its tokens: {spec}", tokens.spec)
        rank = len(modality.grid(shape))
        expect(len(spec.patch_size) == rank, f"patch_size of {rank} numbers, as the grid", spec.patch_size)
        expect(shape[0] == spec.channels, f"sample_shape starts with the {spec.channels} channels", shape)
        for name in ("mean", "std"):
            count = len(getattr(spec, name))
            expect(count in (0, spec.channels), f"{name}: none, or one for each of {spec.channels} channels", count)
        expect(hash(spec) == hash(modality.spec), "a spec that can be a key of a dictionary", "another hash")
        expect(bool(modality.embedding), "a key of its embedding", "an empty one")

    @promise
    def detokenizes_what_it_tokenizes(self) -> None:
        """`tokenize` and `detokenize` invert each other, whatever the dtype, which they keep."""
        for batch in self.batches():
            tokens = self.component.tokenize(batch)
            expect(tokens.content.dtype == batch.dtype, f"content in {batch.dtype}", tokens.content.dtype)
            back = self.component.detokenize(tokens.content, tokens.grid)
            expect(back.dtype == batch.dtype, f"samples in {batch.dtype}", back.dtype)
            again = self.component.tokenize(back).content
            expect_equal(again, tokens.content, f"{batch.dtype}: tokens of detokenized tokens")
            if tokens.content.numel() == batch.numel():
                expect_equal(back, batch, f"{batch.dtype}: samples of their tokens")

    @promise
    def only_rearranges(self) -> None:
        """`tokenize` only rearranges: every number of a sample is in its tokens, equally often."""
        for batch in self.batches():
            content = self.component.tokenize(batch).content
            times, rest = divmod(content.numel(), batch.numel())
            if rest or not times:
                raise NotApplicable("tokens hold other numbers than a sample does")
            wanted = batch.flatten(1).repeat(1, times).sort().values
            expect_equal(content.flatten(1).sort().values, wanted, f"{batch.dtype}: the numbers of a sample, sorted")

    @promise
    def tokenizes_every_sample_by_itself(self) -> None:
        """A sample's tokens do not depend on the rest of the batch, and a batch of one is a batch."""
        for batch in self.batches(3):
            whole = self.component.tokenize(batch).content
            alone = torch.cat([self.component.tokenize(batch[row : row + 1]).content for row in range(3)])
            expect_equal(alone, whole, f"{batch.dtype}: tokens of samples one by one")

    @promise
    def refuses_samples_of_another_size(self) -> None:
        """A batch whose shape does not fit is refused with a ValueError."""
        sample = self.scene.samples(1)
        wrong = [sample[0], sample.unsqueeze(0)]
        for axis, patch in enumerate(reversed(self.component.spec.patch_size), start=1):
            if patch > 1 and axis < sample.dim() - 1:
                wrong.append(torch.cat([sample, sample.narrow(-axis, 0, 1)], dim=-axis))
        for batch in wrong:
            expected = f"ValueError for {tuple(batch.shape)}, where samples are {tuple(sample.shape[1:])}"
            _expect_refused(lambda batch=batch: self.component.tokenize(batch), ValueError, expected)

    @promise
    def embeds_every_token_by_itself(self) -> None:
        """Its embedding gives every token a vector, of that token alone."""
        tokens = self.component.tokenize(self.scene.samples(2))
        count = math.prod(tokens.grid)
        for width in (24, 32):
            embedding = self.component.build_embedding(width)
            with torch.no_grad():
                whole = embedding(tokens.values())
                expect_shape(whole, (2, count, width), f"embedded in {width} numbers")
                expect_finite(whole, "embedded tokens")
                some = embedding(tokens.values(torch.arange(0, count, 2).expand(2, -1)))
            expect_close(some, whole[:, ::2], "every other token, embedded without the rest")

    @promise
    def holds_no_weights(self) -> None:
        """It holds no weights, and its worker side no tensors: nothing of them would be moved, trained or saved."""
        self.component.tokenize(self.scene.samples(2))
        for what in (self.component, self.component.preparation):
            expect(not isinstance(what, nn.Module), f"{type(what).__name__} is no torch.nn.Module", "it is one")
            held = [name for name, value in vars(what).items() if isinstance(value, Tensor | nn.Module)]
            expect(not held, f"{type(what).__name__} holds no tensor and no module", f"it does: {', '.join(held)}")

    @promise
    def guesses_from_visible_tokens(self) -> None:
        """The simplest guess is made of visible tokens alone, in the unit of the source."""
        scene = self.scene
        if scene.holds_ids or math.prod(scene.grid) < 2:
            raise NotApplicable("of ids the loss makes the guess" if scene.holds_ids else "a sample is one token")
        for dtype in (None, torch.float32):
            tokens, mask = scene.tokens(2, dtype=dtype), scene.mask(2)
            guess = self.component.baseline(tokens, mask)
            expect_shape(guess, (*mask.predicted.shape, self.component.spec.content_dim), "guesses at masked tokens")
            expect_finite(guess, "guesses")
            again = self.component.baseline(scene.with_other_masked_content(tokens, mask), mask)
            expect_equal(again, guess, "guesses where masked tokens are others")

    @promise
    def draws_pictures(self) -> None:
        """Pictures are uint8 (height, width, 3), of ids also where one stands for a masked token."""
        spec, sample = self.component.spec, self.scene.samples(1)[0]
        if spec.vocab_size is None:
            samples = [sample.float() / spec.scale]
        else:
            samples = [sample, torch.full_like(sample, spec.vocab_size)]
        for shown in samples:
            try:
                picture = self.preparation.show(shown)
            except NotImplementedError as error:
                raise NotApplicable(str(error)) from error
            fine = isinstance(picture, np.ndarray) and picture.dtype == np.uint8
            expect(fine, "an array of uint8", getattr(picture, "dtype", type(picture).__name__))
            expect(picture.ndim == 3 and picture.shape[2] == 3, "(height, width, 3)", picture.shape)

    @promise
    def names_endings_in_lower_case(self) -> None:
        """Its worker side names file endings in lower case, with their dot."""
        endings = self.preparation.extensions
        expect(isinstance(endings, tuple), "a tuple of endings", endings)
        wrong = [ending for ending in endings if ending != ending.lower() or not ending.startswith(".")]
        expect(not wrong, "endings such as .png", ", ".join(wrong))

    @promise
    def pickles_its_worker_side(self) -> None:
        """A copy of its worker side out of a pickle prepares the same samples."""
        preparation = self.preparation
        again = pickle.loads(pickle.dumps(preparation))
        expect(again.extensions == preparation.extensions, f"extensions {preparation.extensions}", again.extensions)
        samples = list(self.scene.samples(2))
        expect_equal(again.collate(samples), preparation.collate(samples), "a batch that the copy collates")
        try:
            loaded = self.loadable()
        except NotApplicable:
            return
        expect_equal(prepared(again, loaded), prepared(preparation, loaded), "a sample that the copy prepares")

    @promise
    def prepares_samples_that_fit(self) -> None:
        """Prepared samples have the sample shape, and a batch of them becomes tokens with finite values."""
        modality, preparation, loaded = self.component, self.preparation, self.loadable()
        samples = [prepared(preparation, loaded, seed) for seed in (None, 0, 1)]
        for sample in samples:
            expect_shape(sample, modality.sample_shape, "a prepared sample")
            expect(sample.dtype == samples[0].dtype, f"{samples[0].dtype} whichever the sample", sample.dtype)
        batch = preparation.collate(samples)
        expect_shape(batch, (3, *modality.sample_shape), "a batch of three")
        self._expect_values(batch)

    @promise
    def has_values_in_any_dtype(self) -> None:
        """Tokens of every dtype have finite normalised values, and raw ones within the spec's `range`."""
        for batch in self.batches():
            self._expect_values(batch)
        tokens, spec = self.component.tokenize(self.scene.samples(2)), self.component.spec
        raw = tokens.raw()
        fits = tokens.normalized or torch.equal(spec.clamp(raw).nan_to_num(), raw.nan_to_num())
        expect(fits, f"raw values within {spec.range}", f"{float(raw.min()):.3g} to {float(raw.max()):.3g}")

    def _expect_values(self, batch: Tensor) -> None:
        tokens, spec = self.component.tokenize(batch), self.component.spec
        if spec.vocab_size is not None:
            fits = bool((tokens.content >= 0).all() and (tokens.content < spec.vocab_size).all())
            expect(fits and not batch.is_floating_point(), f"ids in 0 .. {spec.vocab_size - 1}", "others")
            return
        values = tokens.values()
        expect(values.is_floating_point(), f"normalised values of {batch.dtype}, floating point", values.dtype)
        expect_finite(values.nan_to_num() if spec.gaps else values, f"normalised values of {batch.dtype}")

    @promise
    def prepares_in_several_threads(self) -> None:
        """One object of its worker side serves several threads at once."""
        preparation, loaded, seeds = self.preparation, self.loadable(), range(2 * THREADS)
        wanted = [prepared(self.again().preparation, loaded, seed) for seed in seeds]

        def task(first: int) -> Callable[[], list[Tensor]]:
            return lambda: [prepared(preparation, loaded, seed) for seed in seeds[first::THREADS] for _ in range(3)]

        for first, found in enumerate(in_threads([task(first) for first in range(THREADS)])):
            own = [wanted[seed] for seed in seeds[first::THREADS] for _ in range(3)]
            for sample, alone in zip(found, own, strict=True):
                expect_equal(sample, alone, f"a sample prepared in one of {THREADS} threads")

    @promise
    def calls_broken_files_bad_samples(self) -> None:
        """A file that it cannot read is a BadSample, whatever is in the file."""
        endings = self.preparation.extensions
        if not endings:
            raise NotApplicable("it reads no files")
        for ending in endings:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"broken{ending}"
                expected = f"BadSample for a {ending} that is not there"
                _expect_refused(
                    lambda path=path: prepared(self.preparation, SourceFile(str(path))), BadSample, expected
                )
                for content in (b"", b"not what its name says", bytes(5000), b"\xff\xfe\x00" * 999):
                    path.write_bytes(content)
                    expected = f"BadSample, or a sample, for a {ending} of the {len(content)} bytes {content[:12]!r}"
                    try:
                        sample = prepared(self.preparation, SourceFile(str(path)))
                    except BadSample:
                        continue
                    except Exception as error:
                        raise Unmet(expected, f"{type(error).__name__}: {error}") from error
                    expect_shape(sample, self.component.sample_shape, expected)


def prepared(preparation: Preparation, loaded: Any, seed: int | None = 0) -> Tensor:  # noqa: ANN401
    """What one worker makes of it: a function of the settings, of what was loaded and of the view."""
    views = [PLAIN if seed is None else View(seeded_generator(part, seed)) for part in ("decode", "prepare")]
    return preparation.prepare(preparation.decode(loaded, views[0]), views[1])


def _expect_refused(make: Callable[[], object], error: type[Exception], expected: str) -> None:
    try:
        found = make()
    except error:
        return
    except Exception as other:
        raise Unmet(expected, f"{type(other).__name__}: {other}") from other
    raise Unmet(expected, f"it was taken: {type(found).__name__}")

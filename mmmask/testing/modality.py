"""What every modality promises, and its worker side, the preparation."""

from __future__ import annotations

import copy
import math
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.interfaces import PLAIN, BadSample, Modality, Preparation, SourceFile, View
from mmmask.randomness import seeded_generator
from mmmask.testing.check import NotApplicable, Promises, Subject, expect
from mmmask.testing.comparison import expect_close, expect_equal, expect_finite, expect_shape
from mmmask.testing.component import expect_no_weights, promise_of_every_component
from mmmask.testing.randomness import expect_no_global_randomness
from mmmask.testing.synthetic import Scene
from mmmask.testing.threads import at_once

THREADS = 4


class ModalitySubject(Subject):
    """A modality.

    Args:
        component: as for every subject.
        loaded: what a source hands to the preparation, such as a `SourceFile`. Without it several arrays are tried,
            and a text; where the preparation takes none of these, nothing is examined of how it decodes.
        settings: of the modality.
    """

    kind, interface = "modality", Modality

    def __init__(self, component: str | type[Any], loaded: Any = None, **settings: Any) -> None:  # noqa: ANN401
        super().__init__(component, **settings)
        self.loaded = loaded

    @property
    def modality(self) -> Modality:
        """A new one."""
        return self.component(self.config)

    @property
    def scene(self) -> Scene:
        """Its samples."""
        return Scene(self.modality)

    def batches(self, count: int = 2) -> Iterator[Tensor]:
        """Samples of every dtype that it may be given: ids, or bytes and floating point."""
        batch = self.scene.samples(count)
        yield batch
        if not self.scene.holds_ids:
            yield from (batch.to(dtype) / 255 for dtype in (torch.float32, torch.float64))

    def loadable(self, preparation: Preparation) -> Any:  # noqa: ANN401 - whatever a source may give
        """Something that the preparation makes a sample of.

        Raises:
            NotApplicable: none of what was tried.
        """
        if self.loaded is not None:
            return self.loaded
        for candidate in self._candidates():
            try:
                sample = preparation.prepare(preparation.decode(copy.deepcopy(candidate), PLAIN), PLAIN)
            except Exception:  # what is not meant for it may end in any error
                continue
            if isinstance(sample, Tensor) and tuple(sample.shape) == self.modality.sample_shape:
                return candidate
        raise NotApplicable("give loaded=, what a source would hand to its preparation")

    def _candidates(self) -> Iterator[Any]:
        channels, *extent = self.modality.sample_shape
        larger = (channels, *(2 * size for size in extent))
        for shape in (larger, (channels, *extent)):
            if self.scene.holds_ids:
                drawn = torch.randint(self.modality.spec.vocab_size or 2, shape, generator=seeded_generator("loaded"))
            else:
                drawn = torch.randint(256, shape, generator=seeded_generator("loaded"), dtype=torch.uint8)
            yield drawn
            yield drawn.movedim(0, -1).contiguous().numpy()
            yield drawn[0]
            yield drawn[0].numpy()
            if not self.scene.holds_ids:
                yield drawn.float() / 255
                yield (drawn[0].float() / 255).numpy()
        yield "What a source of texts would load. " * math.prod(extent)


promises = Promises(ModalitySubject)
promise_of_every_component(promises)


@promises
def has_sizes_that_agree(subject: ModalitySubject) -> None:
    """Its grid, token spec, sample shape and tokens agree with one another."""
    modality = subject.modality
    spec, shape = modality.spec, modality.sample_shape
    for batch in subject.batches():
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


@promises
def detokenizes_what_it_tokenizes(subject: ModalitySubject) -> None:
    """`tokenize` and `detokenize` invert each other, whatever the dtype, which they keep."""
    modality = subject.modality
    for batch in subject.batches():
        tokens = modality.tokenize(batch)
        expect(tokens.content.dtype == batch.dtype, f"content in {batch.dtype}", tokens.content.dtype)
        back = modality.detokenize(tokens.content, tokens.grid)
        expect(back.dtype == batch.dtype, f"samples in {batch.dtype}", back.dtype)
        expect_equal(modality.tokenize(back).content, tokens.content, f"{batch.dtype}: tokens of detokenized tokens")
        if tokens.content.numel() == batch.numel():
            expect_equal(back, batch, f"{batch.dtype}: samples of their tokens")


@promises.optional
def only_rearranges(subject: ModalitySubject) -> None:
    """`tokenize` only rearranges: every number of a sample is in its tokens, equally often."""
    modality = subject.modality
    for batch in subject.batches():
        content = modality.tokenize(batch).content
        times, rest = divmod(content.numel(), batch.numel())
        if rest or not times:
            raise NotApplicable("tokens hold other numbers than a sample does")
        wanted = batch.flatten(1).repeat(1, times).sort().values
        expect_equal(content.flatten(1).sort().values, wanted, f"{batch.dtype}: the numbers of a sample, sorted")


@promises
def tokenizes_every_sample_by_itself(subject: ModalitySubject) -> None:
    """A sample's tokens do not depend on the rest of the batch, and a batch of one is a batch."""
    modality = subject.modality
    for batch in subject.batches(3):
        whole = modality.tokenize(batch).content
        alone = torch.cat([modality.tokenize(batch[row : row + 1]).content for row in range(3)])
        expect_equal(alone, whole, f"{batch.dtype}: tokens of samples one by one")


@promises
def refuses_samples_of_another_size(subject: ModalitySubject) -> None:
    """A batch whose shape does not fit is refused with a ValueError."""
    modality, sample = subject.modality, subject.scene.samples(1)
    wrong = [sample[0], sample.unsqueeze(0)]
    for axis, patch in enumerate(reversed(modality.spec.patch_size), start=1):
        if patch > 1 and axis < sample.dim() - 1:
            wrong.append(torch.cat([sample, sample.narrow(-axis, 0, 1)], dim=-axis))
    for batch in wrong:
        expected = f"ValueError for {tuple(batch.shape)}, where samples are {tuple(sample.shape[1:])}"
        try:
            tokens = modality.tokenize(batch)
        except ValueError:
            continue
        except Exception as error:
            expect(False, expected, f"{type(error).__name__}: {error}")
        else:
            expect(False, expected, f"tokens {tuple(tokens.content.shape)}")


@promises
def embeds_every_token_by_itself(subject: ModalitySubject) -> None:
    """Its embedding gives every token a vector, of that token alone."""
    modality = subject.modality
    tokens = modality.tokenize(subject.scene.samples(2))
    count = math.prod(tokens.grid)
    for width in (24, 32):
        embedding = modality.build_embedding(width)
        with torch.no_grad():
            whole = embedding(tokens.values())
            expect_shape(whole, (2, count, width), f"embedded in {width} numbers")
            index = torch.arange(0, count, 2).expand(2, -1)
            some = embedding(tokens.values(index))
        expect_close(some, whole[:, ::2], "every other token, embedded without the rest")


@promises
def holds_no_weights(subject: ModalitySubject) -> None:
    """It holds no weights: nothing of it would be moved, trained or saved."""
    modality = subject.modality
    modality.tokenize(subject.scene.samples(2))
    expect_no_weights(modality)


@promises.optional
def guesses_from_visible_tokens(subject: ModalitySubject) -> None:
    """The simplest guess is made of visible tokens alone, in the unit of the source."""
    if subject.scene.holds_ids:
        raise NotApplicable("of ids the loss makes the guess")
    scene = subject.scene
    if math.prod(scene.grid) < 2:
        raise NotApplicable("a sample is one token")
    for dtype in (None, torch.float32):
        tokens, mask = scene.tokens(2, dtype=dtype), scene.mask(2)
        guess = scene.modality.baseline(tokens, mask)
        expect_shape(guess, (*mask.predicted.shape, scene.modality.spec.content_dim), "guesses at masked tokens")
        expect_finite(guess, "guesses")
        again = scene.modality.baseline(scene.with_other_masked_content(tokens, mask), mask)
        expect_equal(again, guess, "guesses where masked tokens are others")


@promises.optional
def draws_pictures(subject: ModalitySubject) -> None:
    """Pictures are uint8 (height, width, 3), of ids also where one stands for a masked token."""
    modality, sample = subject.modality, subject.scene.samples(1)[0]
    if modality.spec.vocab_size is None:
        samples = [sample.float() / 255]
    else:
        samples = [sample, torch.full_like(sample, modality.spec.vocab_size)]
    for shown in samples:
        try:
            picture = modality.preparation.show(shown)
        except NotImplementedError as error:
            raise NotApplicable(str(error)) from error
        fine = isinstance(picture, np.ndarray) and picture.dtype == np.uint8
        expect(fine, "an array of uint8", getattr(picture, "dtype", type(picture).__name__))
        expect(picture.ndim == 3 and picture.shape[2] == 3, "(height, width, 3)", picture.shape)


@promises
def prepares_without_tensors(subject: ModalitySubject) -> None:
    """Its worker side holds settings: no tensor, no module."""
    expect_no_weights(subject.modality.preparation)


@promises
def names_endings_in_lower_case(subject: ModalitySubject) -> None:
    """Its worker side names file endings in lower case, with their dot."""
    endings = subject.modality.preparation.extensions
    expect(isinstance(endings, tuple), "a tuple of endings", endings)
    wrong = [ending for ending in endings if ending != ending.lower() or not ending.startswith(".")]
    expect(not wrong, "endings such as .png", ", ".join(wrong))


@promises
def pickles_its_worker_side(subject: ModalitySubject) -> None:
    """A copy of its worker side out of a pickle prepares the same samples."""
    preparation = subject.modality.preparation
    again = pickle.loads(pickle.dumps(preparation))
    expect(type(again) is type(preparation), type(preparation).__name__, type(again).__name__)
    expect(again.extensions == preparation.extensions, f"extensions {preparation.extensions}", again.extensions)
    samples = list(subject.scene.samples(2))
    expect_equal(again.collate(samples), preparation.collate(samples), "a batch that the copy collates")
    try:
        loaded = subject.loadable(preparation)
    except NotApplicable:
        return
    expect_equal(_prepared(again, loaded), _prepared(preparation, loaded), "a sample that the copy prepares")


@promises.optional
def prepares_samples_that_fit(subject: ModalitySubject) -> None:
    """Prepared samples have the sample shape, and a batch of them can be tokenized."""
    modality, preparation = subject.modality, subject.modality.preparation
    loaded = subject.loadable(preparation)
    samples = [_prepared(preparation, loaded, seed) for seed in (None, 0, 1)]
    for sample in samples:
        expect_shape(sample, modality.sample_shape, "a prepared sample")
        expect(sample.dtype == samples[0].dtype, f"{samples[0].dtype} whichever the sample", sample.dtype)
    batch = preparation.collate(samples)
    expect_shape(batch, (3, *modality.sample_shape), "a batch of three")
    modality.tokenize(batch)


@promises.optional
def prepares_from_its_generator_alone(subject: ModalitySubject) -> None:
    """A prepared sample is a function of what was loaded and of the generator."""
    preparation = subject.modality.preparation
    loaded = subject.loadable(preparation)
    for seed in (None, 0, 1):
        what = "a sample without a generator" if seed is None else f"a sample of seed {seed}"
        first = _prepared(preparation, loaded, seed)
        expect_equal(_prepared(preparation, loaded, seed), first, f"{what}, prepared again")
        other = _prepared(subject.modality.preparation, loaded, seed)
        expect_equal(other, first, f"{what}, prepared by another object")


@promises.optional
def prepares_without_global_random_state(subject: ModalitySubject) -> None:
    """A prepared sample neither reads nor changes global random state."""
    preparation = subject.modality.preparation
    loaded = subject.loadable(preparation)
    for seed in (None, 0):
        expect_no_global_randomness(lambda seed=seed: _prepared(preparation, loaded, seed), "a prepared sample")


@promises.optional
def prepares_in_several_threads(subject: ModalitySubject) -> None:
    """One object of its worker side serves several threads at once."""
    preparation = subject.modality.preparation
    loaded = subject.loadable(preparation)
    seeds = range(2 * THREADS)
    wanted = [_prepared(subject.modality.preparation, loaded, seed) for seed in seeds]

    def task(first: int) -> Callable[[], list[Tensor]]:
        return lambda: [_prepared(preparation, loaded, seed) for seed in seeds[first::THREADS] for _ in range(3)]

    for first, found in enumerate(at_once([task(first) for first in range(THREADS)])):
        own = [wanted[seed] for seed in seeds[first::THREADS] for _ in range(3)]
        for sample, alone in zip(found, own, strict=True):
            expect_equal(sample, alone, f"a sample prepared in one of {THREADS} threads")


@promises.optional
def calls_broken_files_bad_samples(subject: ModalitySubject) -> None:
    """A file that it cannot read is a BadSample, whatever is in the file."""
    modality, preparation = subject.modality, subject.modality.preparation
    if not preparation.extensions:
        raise NotApplicable("it reads no files")
    for ending in preparation.extensions:
        with tempfile.TemporaryDirectory() as folder:
            missing = SourceFile(str(Path(folder) / f"missing{ending}"))
            expected = f"BadSample for a {ending} that is not there"
            try:
                preparation.prepare(preparation.decode(missing, PLAIN), PLAIN)
            except BadSample:
                pass
            except Exception as error:
                expect(False, expected, f"{type(error).__name__}: {error}")
            else:
                expect(False, expected, "a sample")
            for content in (b"", b"not what its name says", bytes(5000), b"\xff\xfe\x00" * 999):
                path = Path(folder) / f"broken{ending}"
                path.write_bytes(content)
                expected = f"BadSample, or a sample, for a {ending} of the {len(content)} bytes {content[:12]!r} ..."
                try:
                    sample = preparation.prepare(preparation.decode(SourceFile(str(path)), PLAIN), PLAIN)
                except BadSample:
                    continue
                except Exception as error:
                    expect(False, expected, f"{type(error).__name__}: {error}")
                else:
                    expect_shape(sample, modality.sample_shape, expected)


def _prepared(preparation: Preparation, loaded: Any, seed: int | None = 0) -> Tensor:  # noqa: ANN401
    """What one worker makes of it; what was loaded is copied, for a source would load it again."""
    decoding, preparing = (
        PLAIN if seed is None else View(seeded_generator(part, seed)) for part in ("decode", "prepare")
    )
    return preparation.prepare(preparation.decode(copy.deepcopy(loaded), decoding), preparing)

"""Features of a source: computed, and kept in a folder by what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmmask.components import components
from mmmask.evaluation.extraction import features_of
from mmmask.evaluation.inputs import open_inputs
from mmmask.evaluation.outputs import portions
from mmmask.evaluation.probing.samples import ProbedSamples
from mmmask.interfaces import BadSample, Batch, Source, SourceFile
from mmmask.interop import InteropError
from mmmask.interop.checkpoint_file import read_plain, write_tensors
from mmmask.model.memory import size
from mmmask_registry import MmmaskError

MOST_TOKENS = 16 * 2**30
"""Bytes of all tokens of a source, in half precision, that are written to disk for the attentive probe."""

Progress = Callable[[str, int, int, Sequence[str]], None]
"""Called with (what is being done, how much of it is done, in all, reasons of newly skipped samples)."""


@dataclass(frozen=True)
class Encoded:
    """Features (samples, width) of the samples `index` of a source; `tokens` (samples, tokens, width) lie in a file."""

    features: Tensor
    index: list[int]
    skipped: list[str]
    tokens: Tensor | None = None


@dataclass(frozen=True)
class FeatureReader:
    """Features of a stream's samples, computed or kept from before.

    Attributes:
        tokens: whether all tokens are wanted too.
        cache: the folder that keeps features.
        working: the folder of the tokens' files.
    """

    stream: str
    pool: str | None
    precision: str
    batch_size: int
    device: torch.device
    tokens: bool
    cache: Path | None
    working: Path
    progress: Progress

    def both(self, model: Any, samples: ProbedSamples, words: str) -> tuple[Encoded, Encoded | None]:  # noqa: ANN401
        """Features by a model of training samples, and of test samples; `words` says in the progress which model."""
        words = f", {words}" if words else ""
        train = self._read(model, samples.train, f"{self.stream}: training samples{words}")
        if samples.test is None:
            return train, None
        return train, self._read(model, samples.test, f"{self.stream}: test samples{words}")

    def _read(self, model: Any, source: Source, doing: str) -> Encoded:  # noqa: ANN401 - a Model
        kept = self._kept(model, source)
        if kept is not None and not self.tokens and (found := _read(kept)) is not None:
            return found
        total = len(source)
        features: list[Tensor] = []
        index: list[int] = []
        skipped: list[str] = []
        tokens = None
        self.progress(doing, 0, total, ())
        inputs = open_inputs(model, (), source, None, self.stream, str(self.device), self.precision, None)

        def forward(stream: str, rows: Batch) -> dict[str, Tensor]:
            return features_of(model, stream, rows, self.pool, tokens=self.tokens)

        for some in portions(inputs, forward, self.batch_size, self.precision):
            if some.index:
                if self.tokens:
                    layers = some.tensors[f"{self.stream}.tokens"]
                    if tokens is None:
                        tokens = self._file(total, layers.shape[1:], len(list(self.working.iterdir())))
                    tokens[len(index) : len(index) + len(layers)] = layers.clamp(-65504, 65504).numpy()
                features.append(some.tensors[self.stream])
                index += some.index
            skipped += some.skipped
            self.progress(doing, len(index) + len(skipped), total, some.skipped)
        if not index:
            raise MmmaskError(f"not one of {total} samples could be decoded; the last: {skipped[-1]}")
        found = Encoded(torch.cat(features), index, skipped, None if tokens is None else torch.from_numpy(tokens))
        if kept is not None and not skipped:  # what could not be read may be there the next time
            _keep(kept, found)
        return found

    def _file(self, samples: int, shape: Sequence[int], number: int) -> np.memmap:
        """A file for all tokens, on disk and not in memory.

        Raises:
            MmmaskError: they are too large for that.
        """
        needed = samples * int(np.prod(shape)) * 2
        most = min(MOST_TOKENS, int(0.8 * shutil.disk_usage(self.working).free))
        if needed > most:
            raise MmmaskError(
                f"{self.stream}: attentive: {samples} samples of {' x '.join(map(str, shape))} tokens take "
                f"{size(needed)} on disk ({self.working.parent}), at most {size(most)}: take samples="
                f"{samples * most // needed}, or other kinds"
            )
        path = self.working / f"{number}.npy"
        return np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(samples, *shape))

    def _kept(self, model: Any, source: Source) -> Path | None:  # noqa: ANN401
        """The file that keeps these features: its name says what they were made of."""
        if self.cache is None or (content := _source_digest(source)) is None:
            return None
        settings = [
            model.plain_settings(), self.stream, self.pool, self.precision, dict(components().plugins), content
        ]  # fmt: skip
        digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=20)
        for key, tensor in model.state_dict().items():
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return self.cache / f"{digest.hexdigest()}.safetensors"


def _source_digest(source: Source) -> str | None:
    """Digest of names, sizes and times of files, and of what is no local file all of it; None where it has none."""
    digest = hashlib.blake2b(digest_size=20)
    for index in range(len(source)):
        digest.update(source.describe(index).encode("utf-8", "surrogateescape") + b"\0")
        try:
            loaded = source.load(index)
            for part in loaded.values() if isinstance(loaded, Mapping) else (loaded,):
                if isinstance(part, SourceFile) and part.data is None:
                    stat = os.stat(part.path)
                    digest.update(f"{stat.st_size} {stat.st_mtime_ns}\0".encode())
                if isinstance(part, Tensor):  # whose pickle differs from time to time
                    part = (part.dtype, part.numpy())  # noqa: PLW2901
                digest.update(pickle.dumps(part))
        except BadSample:
            digest.update(b"bad")
        except Exception:  # a remote file, or what cannot be pickled
            return None
    return digest.hexdigest()


def _read(path: Path) -> Encoded | None:
    """Kept features; None where there are none that can be read."""
    try:
        found = read_plain(path)
        skipped = json.loads(bytes(found["skipped"].tolist()))
        return Encoded(found["features"], found["index"].tolist(), skipped)
    except (FileNotFoundError, InteropError, KeyError, ValueError):
        return None


def _keep(path: Path, found: Encoded) -> None:
    skipped = torch.tensor(list(json.dumps(found.skipped).encode()), dtype=torch.uint8)
    write_tensors(path, {"features": found.features, "index": torch.tensor(found.index), "skipped": skipped}, {})


def cache_folder() -> Path:
    """The folder of kept features in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmmask" / "features"


@contextmanager
def working_folder(cache: Path | None) -> Iterator[Path]:
    """A folder for what is too large for memory, removed afterwards; on the disk of the cache.

    Raises:
        MmmaskError: the cache's folder cannot be made.
    """
    try:
        if cache is not None:
            cache.mkdir(parents=True, exist_ok=True)
        found = tempfile.TemporaryDirectory(dir=cache, prefix="tokens_", ignore_cleanup_errors=True)
    except OSError as error:
        raise MmmaskError(f"cache {cache}: cannot be written: {error.strerror}") from error
    with found as folder:
        yield Path(folder)

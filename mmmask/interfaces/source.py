"""Source: where samples come from. Knows files, not tensors of the model."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from mmmask.interfaces.component import Component
from mmmask_registry import MmmaskError


class SourceError(MmmaskError):
    """A source that does not exist, is empty, or holds too many bad samples."""


class Source(Component):
    """A numbered set of samples.

    Built with `extensions`, the file name endings that the stream's modality can decode.

    One object serves all worker threads of a stream, so `load` runs at the same time in several threads: a file handle
    that they share needs a lock, or is opened within the call. A number must always stand for the same sample, or a
    run that goes on will not see what an uninterrupted one would.
    """

    def __init__(self, config: Any, extensions: tuple[str, ...] = ()) -> None:  # noqa: ANN401
        super().__init__(config)
        self.extensions = extensions

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Any:  # noqa: ANN401 - whatever the modality's `Preparation.decode` takes
        """The sample with this number: an array, or a `SourceFile` for the modality to decode.

        Raises:
            BadSample: it cannot be had.
        """

    def label(self, index: int) -> str | None:
        """Its label where the source knows one; never needed for pretraining."""
        return None

    def describe(self, index: int) -> str:
        """What to call the sample in messages and in `bad_samples.jsonl`, such as its path."""
        return f"sample {index}"

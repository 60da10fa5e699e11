"""Source: where samples come from. Knows files, not tensors of the model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from mmmask.interfaces.component import Component
from mmmask_registry import MmmaskError


class SourceError(MmmaskError):
    """A source that does not exist, is empty, or holds too many bad samples."""


class Source(Component):
    """A numbered set of samples.

    Built with `extensions`, the file name endings that the stream's modality can decode. With `pairs_parts` they are
    those of each part of a stream of several, {part: endings}, and `load` gives {part: what was loaded} of all of
    them, with None for parts that the sample lacks; one without any is a `BadSample`.

    Every worker process has a pickled copy, so a source holds nothing open before `load`. Where threads load
    (`data.process: false`, and where it cannot be pickled) one object serves all of a stream's, so that `load` runs at
    the same time in several: a file handle that they share needs a lock, or is opened within the call. A number must
    always stand for the same sample, or a run that goes on will not see what an uninterrupted one would.

    Attributes:
        left_out: what was found and not taken, such as "3 .gif", for `mmmask check` to tell; empty if nothing was.
        pairs_parts: whether it finds the parts of a sample one by one.
        several: the label sets of which a sample may have several classes at once, or none.
    """

    left_out: str = ""
    several: Collection[str] = ()
    pairs_parts: ClassVar[bool] = False

    def __init__(self, config: Any, extensions: Any = ()) -> None:  # noqa: ANN401
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

    def labels(self, index: int) -> Mapping[str, str | tuple[str, ...]]:
        """Its class in each label set that it has a label of; in a set of `several` a tuple of classes.

        By default `label` in the set `label`.
        """
        label = self.label(index)
        return {} if label is None else {"label": label}

    @property
    def classes(self) -> Mapping[str, tuple[str, ...]]:
        """{label set: names of its classes, each once}; a class has its place among them as number.

        By default gathered from the labels of all samples and sorted; to be overridden where a source knows them.
        """
        if type(self).label is Source.label and type(self).labels is Source.labels:
            return {}  # a source without labels may have very many samples
        found: dict[str, set[str]] = {}
        for index in range(len(self)):
            for label_set, given in self.labels(index).items():
                found.setdefault(label_set, set()).update(given if isinstance(given, tuple) else (given,))
        return {label_set: tuple(sorted(names)) for label_set, names in sorted(found.items())}

    def describe(self, index: int) -> str:
        """Name of the sample in messages and in `bad_samples.jsonl`, such as its path."""
        return f"sample {index}"

    def name(self, index: int) -> str:
        """Name of the sample wherever the source lies, such as its path relative to the source's folder.

        A run that goes on compares these: a source that was moved goes on, one that holds others does not.
        """
        return self.describe(index)

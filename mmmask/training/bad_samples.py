"""Record of bad samples, and the share at which a run stops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from mmmask.data.samples import BadRecord
from mmmask.data.streams import Streams
from mmmask.interfaces.source import SourceError
from mmmask.interop.runs import read_jsonl
from mmmask.training.logs import append_jsonl

ENOUGH_TO_JUDGE = 1000
"""Draws after which the share of failed draws counts too, not only that of distinct samples."""


class BadSamples:
    """Writes each bad sample once to `bad_samples.jsonl`, and stops the run above a share.

    The share is that of distinct bad samples in the whole source, which chance cannot push over the limit early; after
    many draws also that of failed draws, so that a huge source that is half broken does not go unnoticed.

    Args:
        path: the file; all processes must read it, or they would not stop together.
        streams: whose samples they are.
        max_share: above it the run stops.
        write: whether this process writes the file.
    """

    def __init__(self, path: Path, streams: Streams, max_share: float, write: bool = True) -> None:
        self.path, self.streams, self.max_share, self.write = path, streams, max_share, write
        self.known: dict[str, set[str]] = {}
        self.failed = dict.fromkeys(streams.sizes, 0)

    def read_known(self) -> None:
        """Replaces the known bad samples by those of the file."""
        self.known = {name: set() for name in self.failed}
        for line in read_jsonl(self.path, stream=str, sample=str):
            self.known.setdefault(line["stream"], set()).add(line["sample"])

    def note(self, step: int, bad: Iterable[BadRecord]) -> None:
        """Writes down those that are not known yet."""
        for record in bad:
            known = self.known.setdefault(record.stream, set())
            if self.write and record.sample not in known:
                append_jsonl(self.path, {"step": step} | asdict(record))
            known.add(record.sample)

    def add(self, step: int, bad: Sequence[BadRecord]) -> None:
        """Records the bad samples of a step.

        Raises:
            SourceError: more than the allowed share is bad.
        """
        self.note(step, bad)
        for record in bad:
            self.failed[record.stream] += 1
        for last in {record.stream: record for record in bad}.values():
            self._judge(last)

    def draws(self, stream: str) -> int:
        """Samples of a stream that were asked for, bad ones included."""
        return self.streams.distinct(stream) + self.failed[stream]

    def state_dict(self) -> dict[str, dict[str, int]]:
        """The counts, for a checkpoint."""
        return {"draws": {name: self.draws(name) for name in self.failed}, "failed": dict(self.failed)}

    def load_state_dict(self, state_dict: dict[str, dict[str, int]]) -> None:
        """Goes on from the counts of a checkpoint."""
        self.failed |= state_dict["failed"]

    def _judge(self, last: BadRecord) -> None:
        stream = last.stream
        distinct, size = len(self.known[stream]), self.streams.sizes[stream]
        failed, draws = self.failed[stream], self.draws(stream)
        many = draws >= ENOUGH_TO_JUDGE and failed > self.max_share * draws
        if distinct > self.max_share * size or many:
            raise SourceError(
                f"streams.{stream}.source: {distinct} of {size} samples could not be decoded ({failed} of {draws} "
                f"draws), more than data.max_bad_share = {self.max_share:g}. The last: {last.sample}: {last.reason}. "
                f"All of them: {self.path}"
            )

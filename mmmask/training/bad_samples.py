"""The record of samples that could not be used, and the point at which there are too many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from mmmask.data.samples import BadRecord
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
        sizes: {stream: samples in its source}.
        max_share: above it the run stops.
        write: whether this process writes the file.
    """

    def __init__(self, path: Path, sizes: Mapping[str, int], max_share: float, write: bool = True) -> None:
        self.path, self.sizes, self.max_share, self.write = path, dict(sizes), max_share, write
        self.known: dict[str, set[str]] = {}
        self.draws = dict.fromkeys(sizes, 0)
        self.failed = dict.fromkeys(sizes, 0)

    def read_known(self) -> None:
        """Replaces the known bad samples by those of the file."""
        self.known = {name: set() for name in self.sizes}
        for line in read_jsonl(self.path):
            self.known.setdefault(line["stream"], set()).add(line["sample"])

    def add(self, step: int, bad: Iterable[tuple[str, BadRecord]], draws: Mapping[str, int]) -> None:
        """Records (stream, bad sample) of a step, and the step's {stream: samples that were none}.

        Raises:
            SourceError: more than the allowed share is bad.
        """
        last: dict[str, BadRecord] = {}
        for stream, number in draws.items():
            self.draws[stream] += number
        for stream, record in bad:
            last[stream] = record
            self.draws[stream] += 1
            self.failed[stream] += 1
            if record.sample not in self.known[stream]:
                self.known[stream].add(record.sample)
                if self.write:
                    append_jsonl(self.path, {"step": step, "stream": stream} | asdict(record))
        for stream, record in last.items():
            self._judge(stream, record)

    def state_dict(self) -> dict[str, dict[str, int]]:
        """The counts, for a checkpoint."""
        return {"draws": dict(self.draws), "failed": dict(self.failed)}

    def load_state_dict(self, state_dict: dict[str, dict[str, int]]) -> None:
        """Goes on from the counts of a checkpoint."""
        self.draws |= state_dict["draws"]
        self.failed |= state_dict["failed"]

    def _judge(self, stream: str, last: BadRecord) -> None:
        distinct, size = len(self.known[stream]), self.sizes[stream]
        failed, draws = self.failed[stream], self.draws[stream]
        many = draws >= ENOUGH_TO_JUDGE and failed > self.max_share * draws
        if distinct > self.max_share * size or many:
            raise SourceError(
                f"streams.{stream}.source: {distinct} of {size} samples could not be decoded ({failed} of {draws} "
                f"draws), more than data.max_bad_share = {self.max_share:g}. The last: {last.sample}: {last.reason}. "
                f"All of them: {self.path}"
            )

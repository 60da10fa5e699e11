"""Preparation of aligned parts: one sample, several modalities, one geometry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import BadSample, Modality, Preparation, View


class AlignedPreparation(Preparation):
    """The preparations of a sample's parts, each with its own appearance and all with one geometry.

    Crops, flips and windows of time are drawn from generators in the same state, in relative coordinates, so that parts
    of other resolutions agree. What a source loaded is {part: what its preparation takes, or None where it is missing},
    or one file that all parts take theirs from, as picture and sound of a video.

    Args:
        modalities: {name within the stream: modality}.
        missing: `skip`: a sample without some part is bad; `mask`: the tensor of the part is 0.
    """

    def __init__(self, modalities: Mapping[str, Modality], missing: str) -> None:
        self.preparations = {name: modality.preparation for name, modality in modalities.items()}
        self.shapes = {name: modality.sample_shape for name, modality in modalities.items()}
        self.ids = {name: modality.spec.vocab_size is not None for name, modality in modalities.items()}
        self.missing = missing
        self.takes_windows = all(part.takes_windows for part in self.preparations.values())

    @property
    def endings(self) -> dict[str, tuple[str, ...]]:
        """{part: file name endings it can decode}."""
        return {name: part.extensions for name, part in self.preparations.items()}

    @property
    def extensions(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride] - computed
        """Endings that all parts can decode."""
        first, *rest = self.endings.values()
        return tuple(ending for ending in first if all(ending in other for other in rest))

    def decode(self, loaded: Any, view: View) -> dict[str, Any]:  # noqa: ANN401 - the source's
        """{part: decoded, None where it is missing}.

        Raises:
            BadSample: a part cannot be decoded, or is missing and may not be.
        """
        views = self._views(view)
        return {
            name: None if part is None else self.preparations[name].decode(part, views[name])
            for name, part in self._parts(loaded).items()
        }

    def decode_clips(self, loaded: Any, count: int) -> list[dict[str, Any]]:  # noqa: ANN401 - the source's
        """{part: decoded} of every deterministic view; raises as `decode`."""
        clips = {
            name: [None] * count if part is None else self.preparations[name].decode_clips(part, count)
            for name, part in self._parts(loaded).items()
        }
        return [{name: decoded[number] for name, decoded in clips.items()} for number in range(count)]

    def seconds(self, loaded: Any) -> float | None:  # noqa: ANN401 - the source's
        """Length of the longest part."""
        parts = {name: part for name, part in self._parts(loaded).items() if part is not None}
        found = [self.preparations[name].seconds(part) for name, part in parts.items()]
        return max((seconds for seconds in found if seconds is not None), default=None)

    def prepare(self, decoded: Any, view: View) -> dict[str, Tensor | None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride] - of several parts
        """{part: (channels, *extent), None where it is missing}."""
        views = self._views(view)
        return {
            name: None if part is None else self.preparations[name].prepare(part, views[name])
            for name, part in decoded.items()
        }

    def empty(self, part: str) -> Tensor:
        """Zeros that stand for a missing part: (channels, *extent)."""
        return torch.zeros(self.shapes[part], dtype=torch.int64 if self.ids[part] else torch.float32)

    def _parts(self, loaded: Any) -> dict[str, Any]:  # noqa: ANN401 - the source's
        found = loaded if isinstance(loaded, Mapping) else dict.fromkeys(self.preparations, loaded)
        lacking = [name for name in self.preparations if found.get(name) is None]
        if lacking and (self.missing == "skip" or len(lacking) == len(self.preparations)):
            raise BadSample(f"has no {lacking[0]}; with `missing: mask` of the stream such parts are masked")
        return {name: found.get(name) for name in self.preparations}

    def _views(self, view: View) -> dict[str, View]:
        """A view for every part: a generator of its own for appearance, one of the same state for geometry."""
        if view.generator is None:
            return dict.fromkeys(self.preparations, view)
        seeds = torch.randint(2**62, (1 + len(self.preparations),), generator=view.generator).tolist()
        return {
            name: View(_generator(seed), view.index, view.of, _generator(seeds[0]))
            for name, seed in zip(self.preparations, seeds[1:], strict=True)
        }


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)

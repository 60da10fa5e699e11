"""One model on its way into a foreign layout: what was written, what was left out, what cannot be said."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mmmask.builtins.transformer import TransformerSettings
from mmmask.builtins.vit import ViTEncoder
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.interfaces import Component, Embedding, Modality, StrictModel
from mmmask.interfaces.component import build, validate_strictly
from mmmask.interfaces.format import Written
from mmmask.interop import InteropError
from mmmask.model.classifier import ClassifierSettings


class Writing:
    """Collects a foreign state dict from a model's, with an account of every one of its keys.

    Args:
        format: its name, for messages.
        settings: plain data of the model's experiment or classifier.
        state: {mmmask key: tensor}.

    Attributes:
        settings: the same, validated.
        written: {foreign key: tensor}.
        left_out: {mmmask key: why the layout has no place for it}.
    """

    def __init__(self, format: str, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        self.format = format
        self.settings: Experiment | ClassifierSettings = (
            validate_strictly(ClassifierSettings, dict(settings))
            if "classes" in settings
            else experiment_from_data(dict(settings))
        )
        self.written: dict[str, Tensor] = {}
        self.left_out: dict[str, str] = {}
        self._waiting = dict(state)
        self._dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())

    def finished(self, config: dict[str, Any] | None = None) -> Written:
        """What was collected.

        Raises:
            InteropError: a key of the model was neither written nor left out.
        """
        if self._waiting:
            raise self.error(f"the layout has no place for {', '.join(self._waiting)}")
        return Written(self.written, config, self.left_out)

    def error(self, problem: str) -> InteropError:
        """A problem with the format's name in front."""
        return InteropError(f"format {self.format}: {problem}")

    # --- what the model is

    @cached_property
    def classifier(self) -> ClassifierSettings | None:
        """The settings of a classifier, None where the model is none."""
        return self.settings if isinstance(self.settings, ClassifierSettings) else None

    @cached_property
    def modalities(self) -> dict[str, Modality]:
        """{stream: modality}."""
        return {name: build("modality", stream.modality) for name, stream in self.settings.streams.items()}

    @cached_property
    def encoder(self) -> ViTEncoder.Config:
        """The settings of the encoder.

        Raises:
            InteropError: it is no plain vision transformer.
        """
        settings = self.settings
        encoder = settings.encoder if isinstance(settings, ClassifierSettings) else settings.model.encoder
        if not isinstance(encoder, ViTEncoder.Config):
            raise self.error(f"{self.path('encoder')}.name is {encoder.name}; the layout is that of a vit")
        return encoder

    def path(self, part: str) -> str:
        """Where the settings of encoder or decoder stand."""
        return part if self.classifier else f"model.{part}"

    def one_stream(self) -> str:
        """The name of the only stream.

        Raises:
            InteropError: there are several.
        """
        names = list(self.settings.streams)
        if len(names) > 1:
            raise self.error(f"streams: {', '.join(names)}; the layout is that of a model of one stream")
        return names[0]

    def square_patches(self, stream: str, *axes: str) -> tuple[list[int], int]:
        """Height and width in pixels of a stream's samples, and the side of its patches.

        Args:
            axes: what the axes of a patch are, such as frames, height, width.

        Raises:
            InteropError: its tokens have other axes, or are not square in the last two.
        """
        modality = self.modalities[stream]
        patch = modality.spec.patch_size
        if len(patch) != len(axes) or patch[-1] != patch[-2]:
            raise self.error(
                f"streams.{stream}.modality.patch_size is {list(patch)}; the layout has patches of "
                f"({', '.join(axes)}), height and width equal"
            )
        return list(modality.sample_shape[-2:]), patch[-1]

    def require(self, where: str, settings: StrictModel, **allowed: tuple[object, ...]) -> None:
        """Checks settings that the layout takes for granted, or can say in a few ways only.

        Args:
            where: they stand, such as `model.encoder`.
            allowed: {setting: the values that it may have}.

        Raises:
            InteropError: one has another value.
        """
        for name, values in allowed.items():
            found = getattr(settings, name)
            if isinstance(found, Component.Config):
                found = found.name
            if found not in values:
                possible = " or ".join(map(json.dumps, values))
                raise self.error(f"{where}.{name} is {json.dumps(found)}; the layout can only say {possible}")

    # --- what is written

    def pop(self, own: str) -> Tensor | None:
        """A tensor of the model's, now accounted for; None where it has none of this name."""
        return self._waiting.pop(own, None)

    def leave_out(self, prefix: str, why: str) -> None:
        """Leaves out all tensors of the model's whose key begins so."""
        for own in [own for own in self._waiting if own.startswith(prefix)]:
            del self._waiting[own]
            self.left_out[own] = why

    def position_table(
        self, part: str, owner: str, settings: TransformerSettings, embedding: str, width: int, num_prefix: int
    ) -> Tensor:
        """The table (prefix + tokens, width) that positions add to the largest grid of an embedding; zeros for none.

        Args:
            part: `encoder` or `decoder`, for messages.
            owner: key of the module that the positions belong to.

        Raises:
            InteropError: the positions add to attention instead.
        """
        same = [modality for modality in self.modalities.values() if modality.embedding == embedding]
        grids = tuple(dict.fromkeys(modality.grid(modality.sample_shape) for modality in same))
        parts = Embedding(same[0].spec, grids, same[0].build_embedding)
        positions = settings.build_positions(parts, width, num_prefix)
        grid = max(grids, key=math.prod)
        if positions.bias(grid, None) is not None:
            raise self.error(
                f"{self.path(part)}.positions is {settings.positions.name}, which adds to attention; the layout has a "
                "table that is added to the tokens"
            )
        prefix = f"{owner}.positions.{embedding}."
        own = {name: self.pop(prefix + name) for name in positions.state_dict()}
        positions.load_state_dict({name: tensor for name, tensor in own.items() if tensor is not None})
        positions.to(self._dtype)
        with torch.no_grad():
            rows = [positions.prefix() if num_prefix else None, positions(grid)]
        sizes = [num_prefix, math.prod(grid)]
        return torch.cat(
            [
                torch.zeros(size, width, dtype=self._dtype) if part is None else part
                for part, size in zip(rows, sizes, strict=True)
            ]
        )

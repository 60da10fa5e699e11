"""Writing: a model in a foreign layout, with an account of every key; models that the layout cannot say are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mmmask.interfaces import Component, Embedding, Grid, Modality, StrictModel, Written, build
from mmmask.interop import CLASSIFIERS, DECODERS, HEADS, InteropError, model_settings
from mmmask_pixels.modality import IMAGENET_MEAN, IMAGENET_STD
from mmmask_zoo.conversion import Patches

Part = Literal["encoder", "decoder"]

TRAINING = ("activation_checkpointing", "drop_path", "dropout")
FREE = frozenset(("name", "size", "width", "depth", "num_heads", "mlp_ratio", "positions", *TRAINING))
"""Settings that every layout can say, or need not: sizes, which keys tell; positions, checked apart; and training."""


class Writing:
    """A foreign state dict out of a model's, with an account of every one of its keys.

    What the layout cannot say is an InteropError.

    Args:
        format: its name, for messages.
        settings: plain data of the model's experiment and `classes`.
        state: {mmmask key: tensor}.

    Attributes:
        settings: the experiment, validated.
        classes: {stream: {label set: names}}.
        modalities: {part: modality}; a stream's only part is named like the stream, others `STREAM/PART`.
        written: {foreign key: tensor}.
        left_out: {mmmask key: why the layout has no place for it}.
        dtype: of the model.
    """

    def __init__(self, format: str, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
        self.format = format
        self.settings, self.classes = model_settings(settings, f"format {format}")
        self.modalities: dict[str, Modality] = {
            part: build("modality", config)
            for name, stream in self.settings.streams.items()
            for part, (_, config) in stream.parts(name).items()
        }
        self._grids = {name: modality.grid(modality.sample_shape) for name, modality in self.modalities.items()}
        self.written: dict[str, Tensor] = {}
        self.left_out: dict[str, str] = {}
        self._waiting = dict(state)
        self.dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())

    def finished(self, config: dict[str, Any] | None = None) -> Written:
        """The collected weights."""
        if self._waiting:
            raise self.error(f"the layout has no place for {', '.join(self._waiting)}")
        return Written(self.written, config, self.left_out)

    def error(self, problem: str) -> InteropError:
        """A problem with the format's name in front."""
        return InteropError(f"format {self.format}: {problem}")

    # --- the model

    @cached_property
    def stream(self) -> str:
        """Name of the stream with the largest grid; a layout has one embedding, decoder and head for all streams."""
        for name, settings in self.settings.streams.items():
            if settings.modality is None:
                raise self.error(
                    f"streams.{name}: {', '.join(settings.modalities)}; the layout is that of one modality"
                )
            if getattr(settings, "targets", None):
                raise self.error(f"streams.{name}.targets: {', '.join(settings.targets)}; the layout has one `loss`")
            if settings.objectives is not None:
                several = ", ".join(settings.learned())
                raise self.error(f"streams.{name}.objectives: {several}; the layout has a place for one")
            if settings.objective not in ("masked", "classification"):
                raise self.error(f"streams.{name}.objective is {settings.objective}; the layout has no place for it")
        shared = {(part.embedding, *self._decoder_and_head(name)) for name, part in self.modalities.items()}
        if len(shared) > 1:
            self.require_one_stream()
        return max(self._grids, key=lambda name: math.prod(self._grids[name]))

    @property
    def classifier(self) -> Any:  # noqa: ANN401 - settings of the stream
        """Settings of the stream where it has classes, None where it is masked."""
        settings = self.settings.streams[self.stream]
        return settings if settings.objective == "classification" else None

    @property
    def label_set(self) -> str:
        """The one label set of a stream that has classes."""
        label_sets = list(self.classifier.label_sets or self.classes[self.stream])
        if len(label_sets) > 1:
            where = f"streams.{self.stream}.label_sets"
            raise self.error(f"{where}: {', '.join(label_sets)}; the layout has one head, of one label set")
        return label_sets[0]

    @property
    def parts(self) -> list[Part]:
        """Parts that have positions."""
        return ["encoder"] if self.classifier else ["encoder", "decoder"]

    @property
    def modality(self) -> Modality:
        """The stream's modality."""
        return self.modalities[self.stream]

    @property
    def grid(self) -> Grid:
        """Grid of the stream's samples."""
        return self._grids[self.stream]

    def key(self, part: Part) -> str:
        """Key of the encoder, or of the stream's decoder."""
        return "encoder" if part == "encoder" else f"{DECODERS}.{self._decoder_and_head(self.stream)[0]}"

    @property
    def head_key(self) -> str:
        """Key of the stream's head; of one with classes, of pool, norm and head."""
        return f"{CLASSIFIERS if self.classifier else HEADS}.{self._decoder_and_head(self.stream)[1]}"

    def _decoder_and_head(self, stream: str) -> tuple[str, str]:
        settings = self.settings.streams[stream]
        if settings.objective == "classification":
            return "", settings.head or stream
        return settings.decoder, settings.head or self.modalities[stream].embedding

    def part(self, part: Part) -> Any:  # noqa: ANN401 - settings of a component
        """Settings of encoder or decoder."""
        return getattr(self.settings.model, part)

    def patches(self, *axes: str, square: bool = True) -> Patches:
        """Patches of the stream.

        Args:
            axes: of a patch that the layout has, such as frames, height, width.
            square: whether samples must be as high as they are wide.
        """
        where, modality = f"streams.{self.stream}.modality", self.modality
        patch, (height, width) = modality.spec.patch_size, modality.sample_shape[-2:]
        if modality.spec.vocab_size is not None or len(patch) != len(axes) or patch[-1] != patch[-2]:
            raise self.error(
                f"{where}.patch_size is {list(patch)}; the layout has patches of ({', '.join(axes)}), height and width "
                "equal"
            )
        if square and height != width:
            raise self.error(f"{where}.size is {[height, width]}; the layout is that of square pictures")
        if "frames" in axes and len(modality.sample_shape) != 4:
            raise self.error(f"{where}.name is {modality.config.name}; the layout is that of clips")
        return Patches(self.part("encoder").width, modality.spec.channels, patch, modality.embedding)

    # --- settings that the layout cannot say

    def require_one_stream(self) -> None:
        """Checks that there are not several streams."""
        streams = self.settings.streams
        if len(streams) > 1:
            raise self.error(f"streams: {', '.join(streams)}; the layout is that of a model of one stream")

    def require(self, where: str, settings: StrictModel, **allowed: tuple[object, ...]) -> None:
        """Checks settings that the layout takes for granted, or can say in a few ways only.

        Args:
            where: they stand, such as `model.encoder`.
            allowed: {setting: the values that it may have}; of a component, names.
        """
        for name, values in allowed.items():
            found = getattr(settings, name)
            found = found.name if isinstance(found, Component.Config) else found
            if found not in values:
                possible = " or ".join(map(json.dumps, values))
                raise self.error(f"{where}.{name} is {json.dumps(found)}; the layout can only say {possible}")

    def require_part(self, part: Part, name: str, free: Collection[str] = (), **allowed: tuple[object, ...]) -> Any:  # noqa: ANN401 - settings of a component
        """Settings of encoder or decoder, where the layout can say them.

        Args:
            name: of the component, such as `vit`.
            free: settings that may have any value, besides `FREE`.
            allowed: {setting: the values that it may have}; every other has its default.
        """
        settings = self.part(part)
        if settings.name != name:
            raise self.error(f"model.{part}.name is {settings.name}; the layout is that of a {name}")
        for setting, field in type(settings).model_fields.items():
            if setting not in FREE and setting not in free:
                allowed.setdefault(setting, (field.get_default(call_default_factory=True),))
        self.require(f"model.{part}", settings, **allowed)
        return settings

    def require_statistics(
        self,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        modality: Modality | None = None,
    ) -> None:
        """Checks how colours are normalised, which no key tells."""
        spec = (modality or self.modality).spec
        if spec.channels == 3 and (spec.mean, spec.std) != (mean, std):
            raise self.error(
                f"streams.{self.stream}.modality: mean and std must be {list(mean)} and {list(std)}, the system's"
            )

    # --- weights

    def pop(self, own: str) -> Tensor | None:
        """A tensor of the model, now accounted for; None where it has none of this name."""
        return self._waiting.pop(own, None)

    def leave_out(self, prefix: str, why: str) -> None:
        """Leaves out all tensors of the model whose key begins so."""
        for own in [own for own in self._waiting if own.startswith(prefix)]:
            del self._waiting[own]
            self.left_out[own] = why

    def position_table(self, part: Part, num_prefix: int, zeros: int = 0) -> Tensor:
        """Table (1, zeros + prefix + tokens, width) that positions add to the stream's grid; zeros for none.

        Args:
            zeros: rows of zeros before it, for tokens of the layout that have no position.
        """
        settings, modality = self.part(part), self.modality
        grids = [grid for name, grid in self._grids.items() if self.modalities[name].embedding == modality.embedding]
        embedding = Embedding(modality.spec, tuple(dict.fromkeys(grids)), modality.build_embedding)
        positions = settings.build_positions(embedding, settings.width, num_prefix)
        if positions.bias(self.grid, None) is not None:
            raise self.error(
                f"model.{part}.positions is {settings.positions.name}, which adds to attention; the layout has a "
                "table that is added to the tokens"
            )
        own = {
            name: self.pop(f"{self.key(part)}.positions.{modality.embedding}.{name}") for name in positions.state_dict()
        }
        positions.load_state_dict({name: tensor for name, tensor in own.items() if tensor is not None})
        positions.to(self.dtype)
        table = torch.zeros(zeros + num_prefix + math.prod(self.grid), settings.width, dtype=self.dtype)
        with torch.no_grad():
            if num_prefix and (prefix := positions.prefix()) is not None:
                table[zeros : zeros + num_prefix] = prefix
            if (tokens := positions(self.grid)) is not None:
                table[zeros + num_prefix :] = tokens
        return table.unsqueeze(0)

    def require_table(self, part: Part, name: str, computed: Tensor) -> Tensor:
        """Positions of encoder or decoder (1, tokens, width), where they are the table that the layout computes.

        Args:
            name: of positions that compute it.
            computed: table (tokens, width).
        """
        table = self.position_table(part, 0)
        if not torch.equal(table[0], computed.to(table.dtype)):
            raise self.error(
                f"model.{part}.positions is {self.part(part).positions.name} of another table than {name} has for "
                f"the grid {self.grid}; the layout computes that one"
            )
        return table

"""Format: how one system lays out its published checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmmask.interfaces.component import Component
from mmmask_registry import MmmaskError


@dataclass(frozen=True)
class ForeignWeights:
    """A foreign checkpoint in mmmask's terms.

    Attributes:
        settings: plain data of the model that the weights fit: an experiment, and where streams learn labels `classes`,
            {stream: {label set: [names]}}. `mmmask.interop.classification` makes those of a fine-tuned file.
        state: {mmmask key: tensor}.
        origin: {mmmask key: foreign keys it was made of}.
        converted: {foreign key: how it was changed}; keys not named were taken as they are.
        unused: {foreign key: why it is not needed}.
        keeps: {mmmask key: why a key that the file lacks stays as the model was built}, where that is right.
    """

    settings: dict[str, Any]
    state: dict[str, Tensor]
    origin: dict[str, tuple[str, ...]]
    converted: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    keeps: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Written:
    """A model in a foreign layout.

    Attributes:
        state: {foreign key: tensor}.
        config: what the foreign library's own `config.json` holds, None where there is none.
        left_out: {mmmask key: why the layout has no place for it}.
    """

    state: dict[str, Tensor]
    config: dict[str, Any] | None = None
    left_out: dict[str, str] = field(default_factory=dict)


class Format(Component):
    """Recognises, reads and perhaps writes one layout; the Config's fields are the options of `mmmask.interop.load`."""

    @classmethod
    @abstractmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether a state dict has this layout, told from its keys and shapes."""

    @classmethod
    def options_from(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Options that the `config.json` beside a file gives; those that a user gives come first.

        Args:
            config: as its library writes it, or empty; it may be another library's.
        """
        return {}

    @abstractmethod
    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            MmmaskError: a size cannot be told from the keys and no option gives it.
        """

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """Converts a model to this layout.

        Args:
            settings: plain data of the model's experiment and `classes`, every default filled in.
            state: {mmmask key: tensor}.

        Raises:
            MmmaskError: the layout cannot say what the model is; by default, it is for reading only.
        """
        raise MmmaskError(f"format {self.config.name}: for reading only")

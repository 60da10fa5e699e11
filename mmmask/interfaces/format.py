"""Format: how one system lays out its published checkpoints."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mmmask.interfaces.component import Component


@dataclass(frozen=True)
class ForeignWeights:
    """A foreign checkpoint in mmmask's terms.

    Attributes:
        experiment: plain data of the experiment whose model the weights fit.
        state: {mmmask key: tensor}.
        origin: {mmmask key: foreign keys it was made of}.
        converted: {foreign key: how it was changed}; keys not named were taken as they are.
        unused: {foreign key: why it is not needed}.
        keeps: {mmmask key: why a key that the file lacks stays as the model was built}, where that is right.
    """

    experiment: dict[str, Any]
    state: dict[str, Tensor]
    origin: dict[str, tuple[str, ...]]
    converted: dict[str, str] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    keeps: dict[str, str] = field(default_factory=dict)


class Format(Component):
    """Recognises and reads one layout; the Config's fields are the options of `mmmask.interop.load`."""

    @classmethod
    @abstractmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether a state dict has this layout, told from its keys and shapes."""

    @abstractmethod
    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """Converts a state dict.

        Raises:
            MmmaskError: a size cannot be told from the keys and no option gives it.
        """

"""mmmask's own layout: its keys as they are, and the settings that the model is built from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Written
from mmmask.interop.errors import InteropError

SETTINGS = "mmmask.settings"
"""Key of the settings: JSON, as a tensor of bytes, so that any file of weights can carry it."""


class OwnFormat(Format):
    """Weights under mmmask's keys, with the model's settings among them."""

    @classmethod
    def recognizes(cls, keys: Mapping[str, Tensor]) -> bool:
        """Whether it carries settings."""
        return SETTINGS in keys

    def read(self, state: Mapping[str, Tensor]) -> ForeignWeights:
        """The weights, and the settings decoded.

        Raises:
            InteropError: there are no settings, or they cannot be read.
        """
        if SETTINGS not in state:
            raise InteropError(f"format {self.config.name}: {SETTINGS} is missing; write files with `mmmask convert`")
        try:
            settings = json.loads(bytes(state[SETTINGS].tolist()))
        except (ValueError, TypeError) as error:
            raise InteropError(f"format {self.config.name}: {SETTINGS} cannot be read: {error}") from error
        if not isinstance(settings, dict):
            raise InteropError(f"format {self.config.name}: {SETTINGS} holds no settings")
        weights = {key: tensor for key, tensor in state.items() if key != SETTINGS}
        return ForeignWeights(
            settings, weights, {key: (key,) for key in weights}, unused={SETTINGS: "what the model was built from"}
        )

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """All weights, and the settings."""
        encoded = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
        return Written({SETTINGS: encoded, **state})

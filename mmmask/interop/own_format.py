"""mmmask's own layout: its keys as they are, and the settings that the model is built from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmmask.interfaces import ForeignWeights, Format, Written
from mmmask.interop.errors import InteropError
from mmmask.interop.fine_tuned import CLASSIFIER, LABEL_SET, classification

SETTINGS = "mmmask.settings"
"""Key of the settings: JSON, as a tensor of bytes, so that any file of weights can carry it."""

EARLIER_KEYS = {
    "decoders.": "objectives.masked.decoders.",
    "heads.": "objectives.masked.heads.",
    "losses.": "objectives.masked.learned_losses.",
    "encoder.stages.": "encoder.pyramid.",
    "pool.": f"{CLASSIFIER}.pool.",
    "norm.": f"{CLASSIFIER}.norm.",
    "head.": f"{CLASSIFIER}.linear.{LABEL_SET}.",
}
"""Beginnings of keys in files from before there were objectives, fine-tuned ones among them."""

EARLIER_SETTINGS = {"hidden_tokens": "masked_tokens", "predict": "decoder_masker", "vocabulary": "tokenizer"}
"""Names of settings in such files."""

DROPPED_SETTINGS = ("crop_scale", "crop_ratio", "flip")
"""Settings in such files that no weight depends on; they are augmentations now."""


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
        where = f"format {self.config.name}: {SETTINGS}"
        is_earlier = not any(key.startswith("objectives.") for key in state)
        if SETTINGS not in state:
            raise InteropError(f"{where} is missing; write files with `mmmask convert`")
        try:
            settings = json.loads(bytes(state[SETTINGS].tolist()))
            if is_earlier:
                settings = _settings_of_today(settings)
                if isinstance(settings, dict) and isinstance(settings.get("classes"), int):
                    settings = _fine_tuned(settings, len(state["head.weight"]))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise InteropError(f"{where} cannot be read: {error}") from error
        except RecursionError as error:
            raise InteropError(f"{where} cannot be read: it is nested too deep") from error
        if not isinstance(settings, dict):
            raise InteropError(f"{where} holds no settings")
        origin = {_key_of_today(key) if is_earlier else key: (key,) for key in state if key != SETTINGS}
        weights = {key: state[earlier] for key, (earlier,) in origin.items()}
        unused = {SETTINGS: "what the model was built from"}
        return ForeignWeights(settings, weights, origin, unused=unused)

    def write(self, settings: Mapping[str, Any], state: Mapping[str, Tensor]) -> Written:
        """All weights, and the settings."""
        encoded = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
        return Written({SETTINGS: encoded, **state})


def _fine_tuned(settings: dict[str, Any], classes: int) -> dict[str, Any]:
    """Settings of a fine-tuned file from before there were objectives."""
    modalities = {name: stream["modality"] for name, stream in settings["streams"].items()}
    return classification(settings["encoder"], modalities, classes, settings["pool"], settings.get("norm_epsilon"))


def _key_of_today(key: str) -> str:
    for earlier, now in EARLIER_KEYS.items():
        if key.startswith(earlier):
            return now + key.removeprefix(earlier)
    return key


def _settings_of_today(value: Any) -> Any:  # noqa: ANN401 - plain data
    if not isinstance(value, dict):
        return value
    renamed = {
        EARLIER_SETTINGS.get(key, key): _settings_of_today(part)
        for key, part in value.items()
        if key not in DROPPED_SETTINGS
    }
    return renamed | {"round_down": "masked"} if renamed.get("round_down") == "hidden" else renamed

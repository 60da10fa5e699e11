"""Classifiers of fine-tuned files: of the mean of all tokens, normalised after it, or of one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from mmmask.interfaces.format import ForeignWeights
from mmmask_zoo.conversion import Conversion

NORM_EPSILON = 1e-6
"""Of the LayerNorm after the mean, in all published files of the original systems."""


def classifier_of_mean(
    conversion: Conversion,
    system: str,
    encoder: Mapping[str, Any],
    modalities: Mapping[str, Any],
    norm: str,
    head: str = "head",
) -> ForeignWeights:
    """A classifier of the mean of all tokens, normalised after it; its encoder has no final norm.

    Args:
        system: its name, for the description.
        encoder: the settings of the encoder.
        modalities: {stream: settings of its modality}.
        norm: foreign key of the LayerNorm after the mean.
        head: foreign key of the linear layer.

    Raises:
        InteropError: the head is missing or of another shape.
    """
    conversion.take_linear(norm, "norm")
    settings = {"encoder": {**encoder, "final_norm": False}, "pool": "mean", "norm_epsilon": NORM_EPSILON}
    return _finished(conversion, system, settings, modalities, head)


def classifier(
    conversion: Conversion,
    system: str,
    encoder: Mapping[str, Any],
    modalities: Mapping[str, Any],
    token: Literal["prefix", "first"],
) -> ForeignWeights:
    """A classifier under timm's names: of the mean of all tokens where there is fc_norm; otherwise of one `token`.

    Raises:
        InteropError: the head is missing or of another shape.
    """
    if "fc_norm.weight" in conversion.source:
        return classifier_of_mean(conversion, system, encoder, modalities, "fc_norm")
    conversion.take_linear("norm", "encoder.norm")
    settings = {"encoder": {**encoder, "final_norm": True}, "pool": token, "norm_epsilon": None}
    return _finished(conversion, system, settings, modalities, "head")


def _finished(
    conversion: Conversion, system: str, settings: dict[str, Any], modalities: Mapping[str, Any], head: str
) -> ForeignWeights:
    conversion.take_linear(head, "head")
    return conversion.finished(
        {
            "description": f"a fine-tuned {system} checkpoint",
            "streams": {name: {"modality": modality} for name, modality in modalities.items()},
            "classes": conversion.shape(f"{head}.weight", "classes, width")[0],
            **settings,
        }
    )

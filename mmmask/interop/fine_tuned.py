"""Fine-tuned files as models of the objective `classification`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LABEL_SET, HEAD = "label", "classes"
CLASSIFIERS = "objectives.classification.heads"
"""Keys of all pools, norms and heads of the objective `classification`."""
CLASSIFIER = f"{CLASSIFIERS}.{HEAD}"
"""Keys of those that all streams of a file share."""


def classification(
    encoder: Mapping[str, Any],
    modalities: Mapping[str, Mapping[str, Any]],
    classes: int,
    pool: str | Mapping[str, Any] = "mean",
    norm_epsilon: float | None = None,
) -> dict[str, Any]:
    """Plain settings of a model whose streams share one head; its classes are called 0, 1, ... in the set `label`.

    Args:
        encoder: its settings.
        modalities: {stream: settings of its modality}.
        classes: outputs of the head.
        pool: its name or settings.
        norm_epsilon: of a LayerNorm on pooled features; None for no such norm.
    """
    norm = {"norm": "none"} if norm_epsilon is None else {"norm": "layer", "norm_epsilon": norm_epsilon}
    head = {"objective": "classification", "head": HEAD, "pool": pool, **norm}
    return {
        "model": {"encoder": encoder},
        "streams": {name: {"modality": modality, **head} for name, modality in modalities.items()},
        "classes": {name: {LABEL_SET: [str(number) for number in range(classes)]} for name in modalities},
    }

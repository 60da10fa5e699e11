"""mmmask: masked modelling of any mix of modalities with one plain Vision Transformer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mmmask.components import register
from mmmask.hooks import hookimpl
from mmmask_registry import MmmaskError

if TYPE_CHECKING:
    from mmmask import interfaces, interop, testing
    from mmmask.data.sample_corpus import write_sample_data
    from mmmask.evaluation.extraction import Features, extract
    from mmmask.evaluation.reconstruction import reconstruct
    from mmmask.experiment import Experiment, load_experiment
    from mmmask.interfaces import (
        Augmentation,
        BadSample,
        Batch,
        Callback,
        Component,
        Decoder,
        Encoder,
        Evaluator,
        Format,
        Loss,
        Mask,
        MaskContext,
        Masker,
        Modality,
        Objective,
        Optimizer,
        Pool,
        Positions,
        Preparation,
        Sample,
        Source,
        Tokens,
        TokenSpec,
        View,
    )
    from mmmask.interop.runs import Run, load_run
    from mmmask.model.build import build_model
    from mmmask.model.classifier import Classifier
    from mmmask.training.train import train

__version__ = "0.1.0"

# Imported on first use: `import mmmask` (as every plugin does) must not cost the seconds that importing torch does.
_MODULES = ("interfaces", "interop", "testing")
_LAZY = {
    **{name: f"mmmask.{name}" for name in _MODULES},
    **dict.fromkeys(("Experiment", "load_experiment"), "mmmask.experiment"),
    **dict.fromkeys(
        (
            "BadSample",
            "View",
            "Sample",
            "Pool",
            "Optimizer",
            "Objective",
            "Evaluator",
            "Callback",
            "Batch",
            "Augmentation",
            "Component",
            "Decoder",
            "Encoder",
            "Format",
            "Loss",
            "Mask",
            "MaskContext",
            "Masker",
            "Modality",
            "Positions",
            "Preparation",
            "Source",
            "Tokens",
            "TokenSpec",
        ),
        "mmmask.interfaces",
    ),  # fmt: skip
    **dict.fromkeys(("Features", "extract"), "mmmask.evaluation.extraction"),
    "reconstruct": "mmmask.evaluation.reconstruction",
    "build_model": "mmmask.model.build",
    "Classifier": "mmmask.model.classifier",
    **dict.fromkeys(("Run", "load_run"), "mmmask.interop.runs"),
    "train": "mmmask.training.train",
    "write_sample_data": "mmmask.data.sample_corpus",
}
__all__ = [
    "Augmentation", "BadSample", "Batch", "Callback", "Classifier", "Component", "Decoder", "Encoder", "Evaluator",
    "Experiment", "Features", "Format", "Loss", "Mask", "MaskContext", "Masker", "MmmaskError", "Modality",
    "Objective", "Optimizer", "Pool", "Positions", "Preparation", "Run", "Sample", "Source", "TokenSpec", "Tokens",
    "View", "build_model", "extract", "hookimpl", "interfaces", "interop", "load_experiment", "load_run",
    "reconstruct", "register", "testing", "train", "write_sample_data",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the public name stands for
    if name not in _LAZY:
        raise AttributeError(f"module 'mmmask' has no attribute {name!r}")
    module = importlib.import_module(_LAZY[name])
    return module if name in _MODULES else getattr(module, name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

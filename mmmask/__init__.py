"""mmmask: masked modelling of any mix of modalities with one plain Vision Transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmmask.components import register
from mmmask.hooks import hookimpl
from mmmask_registry import MmmaskError, lazy_attributes

if TYPE_CHECKING:
    from mmmask import interfaces, interop, testing
    from mmmask.data.sample_corpus import write_sample_data
    from mmmask.evaluation.classification import Evaluation, evaluate
    from mmmask.evaluation.extraction import Features, extract
    from mmmask.evaluation.probing.probe import probe
    from mmmask.evaluation.probing.results import Probes
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
    from mmmask.training.codebook import Codebook, write_codebook
    from mmmask.training.train import train

__version__ = "0.1.0"

# Imported on first use: `import mmmask` (as every plugin does) must not cost the seconds that importing torch does.
__getattr__ = lazy_attributes(__name__)

__all__ = [
    "Augmentation", "BadSample", "Batch", "Callback", "Codebook", "Component", "Decoder", "Encoder", "Evaluation",
    "Evaluator", "Experiment", "Features", "Format", "Loss", "Mask", "MaskContext", "Masker", "MmmaskError", "Modality",
    "Objective", "Optimizer", "Pool", "Positions", "Preparation", "Probes", "Run", "Sample", "Source", "TokenSpec",
    "Tokens", "View", "build_model", "evaluate", "extract", "hookimpl", "interfaces", "interop", "load_experiment",
    "load_run", "probe", "reconstruct", "register", "testing", "train", "write_codebook", "write_sample_data",
]  # fmt: skip


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

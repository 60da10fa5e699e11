"""Interfaces of plugins, one abstract class per file, and the data that flows between components."""

from mmmask.components import INTERFACE_VERSION as VERSION
from mmmask.interfaces.augmentation import Augmentation, AugmentationChoice, Augmentations, Target
from mmmask.interfaces.callback import Callback
from mmmask.interfaces.component import ChosenByName, Component, StrictModel, build, one_of
from mmmask.interfaces.corpus import CorpusPart, write_part
from mmmask.interfaces.decoder import Decoder
from mmmask.interfaces.encoder import Encoder
from mmmask.interfaces.evaluator import Evaluator
from mmmask.interfaces.files import BadSample, SourceFile, open_file, path_manager
from mmmask.interfaces.format import ForeignWeights, Format, Written
from mmmask.interfaces.listing import LabelledFileSource, Listing
from mmmask.interfaces.loss import Loss
from mmmask.interfaces.masker import MaskContext, Masker
from mmmask.interfaces.modality import Modality, Preparation
from mmmask.interfaces.objective import LossTerm, Objective, ObjectiveContext, Plan, StepContext
from mmmask.interfaces.optimizer import Optimizer
from mmmask.interfaces.pool import Pool
from mmmask.interfaces.positions import Positions, PositionsChoice
from mmmask.interfaces.sample import PLAIN, Batch, Sample, View
from mmmask.interfaces.source import Source, SourceError
from mmmask.interfaces.texts import Texts
from mmmask.interfaces.tokens import (
    DecoderInput,
    Embedding,
    EncoderInput,
    Grid,
    GridError,
    Latents,
    Layout,
    Mask,
    Part,
    Tokens,
    TokenSpec,
    gather_rows,
    nothing_masked,
    patchify,
    unpatchify,
)
from mmmask.interfaces.writing import written_whole
from mmmask.randomness import Noise

__all__ = [
    "Augmentation",
    "AugmentationChoice",
    "Augmentations",
    "BadSample",
    "Batch",
    "Callback",
    "ChosenByName",
    "Component",
    "CorpusPart",
    "Decoder",
    "DecoderInput",
    "Embedding",
    "Encoder",
    "EncoderInput",
    "Evaluator",
    "ForeignWeights",
    "Format",
    "Grid",
    "GridError",
    "LabelledFileSource",
    "Latents",
    "Layout",
    "Listing",
    "Loss",
    "LossTerm",
    "Mask",
    "MaskContext",
    "Masker",
    "Modality",
    "Noise",
    "Objective",
    "ObjectiveContext",
    "Optimizer",
    "PLAIN",
    "Part",
    "Plan",
    "Pool",
    "Positions",
    "PositionsChoice",
    "Preparation",
    "Sample",
    "Source",
    "SourceError",
    "SourceFile",
    "StepContext",
    "StrictModel",
    "Target",
    "Texts",
    "TokenSpec",
    "Tokens",
    "VERSION",
    "View",
    "Written",
    "build",
    "gather_rows",
    "nothing_masked",
    "one_of",
    "open_file",
    "patchify",
    "path_manager",
    "unpatchify",
    "write_part",
    "written_whole",
]

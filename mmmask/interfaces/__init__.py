"""What a plugin may supply, one abstract class a file, and the data that flows between components."""

from mmmask.components import INTERFACE_VERSION as VERSION
from mmmask.interfaces.component import ChosenByName, Component, StrictModel, build
from mmmask.interfaces.corpus import CorpusPart, write_part
from mmmask.interfaces.decoder import Decoder
from mmmask.interfaces.encoder import Encoder
from mmmask.interfaces.format import ForeignWeights, Format, Written
from mmmask.interfaces.loss import Loss
from mmmask.interfaces.masker import MaskContext, Masker
from mmmask.interfaces.modality import Modality, Preparation
from mmmask.interfaces.positions import Positions, PositionsChoice
from mmmask.interfaces.source import BadSample, Source, SourceError, SourceFile
from mmmask.interfaces.tokens import (
    Embedding,
    Grid,
    GridError,
    Group,
    Latents,
    Mask,
    Query,
    Tokens,
    TokenSpec,
    gather_rows,
    patchify,
    unpatchify,
)

__all__ = [
    "VERSION",
    "BadSample",
    "ChosenByName",
    "Component",
    "CorpusPart",
    "Decoder",
    "Embedding",
    "Encoder",
    "ForeignWeights",
    "Format",
    "Grid",
    "GridError",
    "Group",
    "Latents",
    "Loss",
    "Mask",
    "MaskContext",
    "Masker",
    "Modality",
    "Positions",
    "PositionsChoice",
    "Preparation",
    "Query",
    "Source",
    "SourceError",
    "SourceFile",
    "StrictModel",
    "TokenSpec",
    "Tokens",
    "Written",
    "build",
    "gather_rows",
    "patchify",
    "unpatchify",
    "write_part",
]

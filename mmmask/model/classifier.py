"""An encoder with a linear head on pooled features: what a fine-tuned checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn

from mmmask.interfaces import ChosenByName, Component, Encoder, Latents, Modality, StrictModel
from mmmask.model.features import encode, feature_maps
from mmmask_registry import MmmaskError


class ClassifiedStream(StrictModel):
    """What a classifier needs to know of a stream."""

    modality: Annotated[Component.Config, ChosenByName("modality")] = Field(description="how samples become tokens")


class ClassifierSettings(StrictModel):
    """A classifier, as plain data."""

    description: str = ""
    encoder: Annotated[Component.Config, ChosenByName("encoder")] = Field(description="turns tokens into latents")
    streams: dict[str, ClassifiedStream] = Field(min_length=1)
    pool: Literal["mean", "prefix", "first"] = Field(
        default="mean", description="the mean of all latents, the first prefix token (cls), or the first token"
    )
    norm_epsilon: float | None = Field(
        default=None, gt=0, description="epsilon of a LayerNorm on pooled features; null for no such norm"
    )
    classes: int = Field(gt=0, description="outputs of the head")


class Classifier(nn.Module):
    """Logits from pooled features; `mmmask.model.build.build_classifier` makes it.

    One head serves all streams.
    """

    def __init__(self, settings: ClassifierSettings, modalities: Mapping[str, Modality], encoder: Encoder) -> None:
        super().__init__()
        self.settings = settings
        self.modalities = dict(modalities)
        self.encoder = encoder
        epsilon = settings.norm_epsilon
        self.norm = nn.Identity() if epsilon is None else nn.LayerNorm(encoder.width, eps=epsilon)
        self.head = nn.Linear(encoder.width, settings.classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{stream: logits (batch, classes)}; samples as in pretraining, nothing is masked.

        Raises:
            MmmaskError: the batch is empty, or some samples do not fit.
        """
        return {name: self.head(features) for name, features in self.features(batch).items()}

    def features(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{stream: (batch, width)}, pooled and normalised: what the head sees."""
        return {name: self.pooled(latents) for name, latents in self.encode(batch).items()}

    def pooled(self, latents: Latents) -> Tensor:
        """(batch, width), pooled and normalised: the features of given latents."""
        return self.norm(self._pool(latents))

    def encode(self, batch: Mapping[str, Tensor]) -> dict[str, Latents]:
        """{stream: Latents}, values (batch, tokens, width) in token order."""
        return encode(self.encoder, self.modalities, batch)

    def feature_maps(self, batch: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """Features laid out on grids, finest first: {stream: (batch, channels, *grid) each}."""
        return feature_maps(self.encoder, self.modalities, batch)

    def _pool(self, latents: Latents) -> Tensor:
        match self.settings.pool:
            case "mean":
                return latents.values.mean(dim=1)
            case "prefix":
                if latents.prefix is None:
                    raise MmmaskError("pool: there is no prefix token: set encoder.prefix_tokens, or pool=mean")
                return latents.prefix[:, 0]
            case "first":
                return latents.values[:, 0]

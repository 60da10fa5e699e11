"""An encoder with a linear head on pooled features: what a fine-tuned checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from mmmask.interfaces import ChosenByName, Component, Encoder, Modality, Pool, StrictModel, build
from mmmask.interfaces.component import every_setting
from mmmask.model.backbone import Backbone
from mmmask.model.blocks import initialize


class ClassifiedStream(StrictModel):
    """Settings of a stream of a classifier."""

    modality: Annotated[Component.Config, ChosenByName("modality")] = Field(description="how samples become tokens")


class ClassifierSettings(StrictModel):
    """A classifier, as plain data."""

    description: str = ""
    encoder: Annotated[Component.Config, ChosenByName("encoder")] = Field(description="turns tokens into latents")
    streams: dict[str, ClassifiedStream] = Field(min_length=1)
    pool: Annotated[Component.Config, ChosenByName("pool")] = Field(
        default_factory=lambda: Component.Config(name="mean"),
        validate_default=True,
        description="reduces the latents of a sample to one vector",
    )
    norm_epsilon: float | None = Field(
        default=None, gt=0, description="epsilon of a LayerNorm on pooled features; null for no such norm"
    )
    classes: int = Field(gt=0, description="outputs of the head")


class Classifier(Backbone):
    """Logits from pooled features; `mmmask.model.build.build_classifier` makes it.

    One head serves all streams.
    """

    def __init__(self, settings: ClassifierSettings, modalities: Mapping[str, Modality], encoder: Encoder) -> None:
        super().__init__(modalities, encoder, every_setting(settings))
        self.settings = settings
        self.pool: Pool = build("pool", settings.pool, width=encoder.width)
        epsilon = settings.norm_epsilon
        self.norm = nn.Identity() if epsilon is None else nn.LayerNorm(encoder.width, eps=epsilon)
        self.head = nn.Linear(encoder.width, settings.classes)
        initialize(self.head, xavier=False)

    def forward(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{stream: logits (batch, classes)}; samples as in pretraining, nothing is masked.

        Raises:
            MmmaskError: the batch is empty, or some samples do not fit.
        """
        return {name: self.head(features) for name, features in self.features(batch).items()}

    def features(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """{stream: (batch, width)}, pooled and normalised: what the head sees."""
        return {name: self.norm(self.pool(latents)) for name, latents in self.encode(batch).items()}

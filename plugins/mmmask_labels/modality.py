"""The labels modality: maps of classes cut into patches of ids."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from mmmask.interfaces import TokenSpec
from mmmask_labels.preparation import LabelsPreparation
from mmmask_pixels.modality import PlaneModality


class LabelsModality(PlaneModality):
    """Class maps (1, height, width) of ids; the id of an ignored pixel is the number of classes.

    Maps of a quarter of a picture's size, with a quarter of its patch size, have the picture's grid (MultiMAE).
    """

    class Config(PlaneModality.Config):
        patch_size: tuple[PositiveInt, PositiveInt] = Field(
            default=(16, 16), description="(height, width) of a token in pixels of the map"
        )
        classes: Annotated[int, Field(gt=0, le=65535)] | tuple[str, ...] = Field(
            description="how many classes there are, numbered from 0, or their names"
        )
        ignore: int | None = Field(
            default=None,
            description="the stored number of pixels without a class, such as 255 or -1: seen as such, and never "
            "predicted; null: there are none",
        )
        class_width: PositiveInt = Field(default=64, description="numbers of the learned vector of a class")

        @property
        def count(self) -> int:
            """Number of classes."""
            return self.classes if isinstance(self.classes, int) else len(self.classes)

    config: Config

    @property
    def spec(self) -> TokenSpec:
        """Patch of ids."""
        config = self.config
        return TokenSpec(config.patch_size, channels=1, vocab_size=config.count, gaps=config.ignore is not None)

    @property
    def embedding(self) -> str:
        """The name in the settings, or one such as `labels_40_16x16`."""
        config = self.config
        return config.embedding or f"labels_{config.count}_{'x'.join(map(str, config.patch_size))}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(1, height, width)."""
        return (1, *self.config.extent)

    @property
    def preparation(self) -> LabelsPreparation:
        """The worker side."""
        return LabelsPreparation(self.config, self.spec)

    def build_embedding(self, width: int) -> nn.Module:
        """A learned vector for every class, then a Linear of a token's vectors."""
        return ClassEmbedding(self.spec, self.config.class_width, width)


class ClassEmbedding(nn.Module):
    """Ids (batch, tokens, pixels) -> (batch, tokens, width).

    The vectors of a token's pixels, one after the other, go through one Linear, initialised as that of pixels. Vectors
    of classes have standard deviation 1, as normalised pixels have. That of an ignored pixel is 0.

    Source: Bachmann et al. 2022, MultiMAE, section 3.2 and appendix A.
    """

    def __init__(self, spec: TokenSpec, class_width: int, width: int) -> None:
        super().__init__()
        assert spec.vocab_size is not None
        ignored = spec.vocab_size if spec.gaps else None
        self.class_emb = nn.Embedding(spec.vocab_size + spec.gaps, class_width, padding_idx=ignored)
        self.proj = nn.Linear(spec.content_dim * class_width, width)
        nn.init.xavier_uniform_(self.proj.weight)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of ids of any integer type."""
        return self.proj(self.class_emb(ids.to(torch.int64)).flatten(2))

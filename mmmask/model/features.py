"""Features of whole samples: nothing masked."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mmmask.interfaces import Encoder, EncoderInput, Latents, Modality
from mmmask.model.masks import nothing_masked
from mmmask.model.tokenizing import tokenize_all


def whole_groups(modalities: Mapping[str, Modality], batch: Mapping[str, Tensor]) -> list[EncoderInput]:
    """What an encoder takes, with nothing masked, in the order of the batch.

    Raises:
        MmmaskError: the batch is empty, or some samples do not fit.
    """
    return [
        EncoderInput(
            modalities[name].embedding, tokens, nothing_masked(len(tokens.content), tokens.grid, tokens.content.device)
        )
        for name, tokens in tokenize_all(modalities, batch).items()
    ]


def encode(encoder: Encoder, modalities: Mapping[str, Modality], batch: Mapping[str, Tensor]) -> dict[str, Latents]:
    """Latents with nothing masked: {stream: Latents}, values (batch, tokens, width) in token order.

    Raises:
        MmmaskError: the batch is empty, or some samples do not fit.
    """
    return dict(zip(batch, encoder(whole_groups(modalities, batch)), strict=True))


def feature_maps(
    encoder: Encoder, modalities: Mapping[str, Modality], batch: Mapping[str, Tensor]
) -> dict[str, list[Tensor]]:
    """Features with nothing masked, laid out on grids, finest first: {stream: (batch, channels, *grid) each}.

    Raises:
        MmmaskError: the batch is empty, or some samples do not fit.
    """
    return dict(zip(batch, encoder.feature_maps(whole_groups(modalities, batch)), strict=True))

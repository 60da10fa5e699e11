"""The teacher: an encoder whose latents of whole samples are what a model learns to predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from mmmask.experiment.settings import TeacherSettings
from mmmask.interfaces import (
    Embedding,
    Encoder,
    EncoderInput,
    Latents,
    Modality,
    Part,
    Tokens,
    TokenSpec,
)
from mmmask_registry import MmmaskError


class Teacher(nn.Module):
    """Frozen encoder in evaluation mode; with `from: ema` a moving average of the model's own (data2vec, section 3.2).

    Its weights are part of the model and of every checkpoint, and no optimiser knows them.

    Args:
        encoder: becomes the teacher's, and is frozen.
        embeddings: that it was built with.
        settings: `model.teacher`.
    """

    def __init__(self, encoder: Encoder, embeddings: Mapping[str, Embedding], settings: TeacherSettings) -> None:  # pyright: ignore[reportInvalidTypeForm]
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self._embeddings, self._settings = dict(embeddings), settings
        self._key_of: dict[str, str] = {}
        self.eval()

    @property
    def follows(self) -> bool:
        """Whether it is a moving average of the model's encoder."""
        return getattr(self._settings, "from") == EMA

    def train(self, mode: bool = True) -> Teacher:
        """Stays in evaluation mode."""
        return super().train(False)

    def admit(self, where: str, modality: Modality) -> None:
        """Finds the embedding for a modality's tokens: that of the same key, or the only one for such tokens.

        Args:
            where: the modality stands in the experiment, for messages.

        Raises:
            MmmaskError: the teacher knows no such tokens, or another grid of them.
        """
        spec, grid = modality.spec, modality.grid(modality.sample_shape)
        alike = [key for key, known in self._embeddings.items() if known.spec.shape == spec.shape]
        keys = [modality.embedding] if modality.embedding in alike else alike
        if len(keys) != 1:
            known = ", ".join(f"{key} ({_words(embedding.spec)})" for key, embedding in self._embeddings.items())
            how = f"could be {' or '.join(keys)}: name one in the modality's `embedding`" if keys else (
                f"are none of the teacher's, which are {known}: give both the same patch size and channels"
            )  # fmt: skip
            raise MmmaskError(f"{where}: model.teacher: its tokens ({_words(spec)}) {how}")
        grids = self._embeddings[keys[0]].grids
        if grid not in grids:
            known = " or ".join(" x ".join(map(str, each)) for each in grids)
            raise MmmaskError(
                f"{where}: model.teacher: a grid of {' x '.join(map(str, grid))} tokens, and the teacher was built for "
                f"{known}: give both the same size of samples"
            )
        self._key_of[modality.embedding] = keys[0]

    @torch.no_grad()
    def latents(self, parts: Sequence[Part], stages: Sequence[int] = ()) -> Latents:
        """Latents of whole samples, in token order, in the precision of the surrounding autocast.

        Args:
            parts: of the samples, aligned, with the embedding keys of the model; mostly one. Their modalities were
                admitted.
            stages: numbers of the encoder's stages whose outputs are wanted as `Latents.stages`.
        """
        shown = []
        for part in parts:
            key = self._key_of[part.key]
            shown.append(Part(key, _as_known(part.tokens, self._embeddings[key].spec)))
        (latents,) = self.encoder([EncoderInput.whole(*shown)], stages)
        return latents

    def begin(self, encoder: Encoder) -> None:
        """Copies the weights of an encoder, where it follows one."""
        if self.follows:
            self.encoder.load_state_dict(encoder.state_dict())

    @torch.no_grad()
    def update(self, encoder: Encoder, step: int) -> None:
        """Moves towards the encoder after an optimiser step, where it follows it; buffers are copied."""
        if not self.follows:
            return
        average = get_ema_multi_avg_fn(self.decay(step))
        average(list(self.encoder.parameters()), list(encoder.parameters()), None)  # pyright: ignore[reportArgumentType] - type hints of torch 2.13
        for own, other in zip(self.encoder.buffers(), encoder.buffers(), strict=True):
            own.copy_(other)

    def decay(self, step: int) -> float:
        """Share of the average that the update after a step keeps: linear from `decay` to `end_decay`, then so."""
        settings = self._settings
        share = min(1.0, step / settings.over) if settings.over else 0.0
        return settings.decay + share * (settings.end_decay - settings.decay)


EMA: Literal["ema"] = "ema"
"""`model.teacher.from` of a moving average."""


def _as_known(tokens: Tokens, spec: TokenSpec) -> Tokens:
    """The same tokens, normalised as the teacher was trained on."""
    if tokens.spec == spec:
        return tokens
    if spec.vocab_size is not None:
        return replace(tokens, spec=spec)
    return Tokens(tokens.raw(), tokens.grid, replace(spec, scale=1.0), valid=tokens.valid)


def _words(spec: TokenSpec) -> str:
    size = " x ".join(map(str, spec.patch_size))
    return f"{size} x {spec.channels}" + (f" of {spec.vocab_size} ids" if spec.vocab_size else "")

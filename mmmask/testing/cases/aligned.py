"""Samples of two aligned parts: a scene, and its companion."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmmask.interfaces import Embedding, EncoderInput, Part
from mmmask.model.masks import mask_from_bool
from mmmask.testing.computing import BATCH
from mmmask.testing.synthetic import Scene, synthetic


def companion(scene: Scene) -> Scene:
    """A part beside that of a scene: of another grid, with another embedding."""
    spec = scene.modality.spec
    return synthetic(tuple(size + 1 for size in scene.grid), spec.patch_size, channels=spec.channels + 1)


def aligned_embeddings(scene: Scene) -> dict[str, Embedding]:
    """Embeddings of samples that have a part of the scene, and one of its companion."""
    both = scene.embeddings | companion(scene).embeddings
    return {key: replace(embedding, aligned=True) for key, embedding in both.items()}


def aligned_input(scene: Scene, seed: int = 0) -> EncoderInput:
    """Samples of these two parts, half of each masked; the companion's content is that of the seed."""
    both, seeds = (scene, companion(scene)), (0, seed)
    parts = (Part(of.modality.embedding, of.tokens(BATCH, one)) for of, one in zip(both, seeds, strict=True))
    return EncoderInput(tuple(parts), mask_from_bool(torch.cat([of.mask(BATCH).masked for of in both], dim=1)))

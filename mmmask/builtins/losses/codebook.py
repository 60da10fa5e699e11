"""Predicting which of the ids of a codebook a token is: a tokeniser trained by us."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from mmmask.builtins.losses.k_means import nearest
from mmmask.interfaces import ChosenByName, Component, Encoder, Latents, Loss, Mask, Tokens, TokenSpec, build
from mmmask.interop.checkpoint_file import write_tensors
from mmmask_registry import MmmaskError

MADE_OF = "mmmask.codebook"
"""Key of a file's metadata: what its centroids are of, as JSON."""


class CodebookLoss(Loss, nn.Module):
    """Cross-entropy, in nats, of the id of the nearest centroid of what another loss has for target.

    Ids of pixels, of HOG or of a teacher's latents (HuBERT, Hsu et al. 2021, section II-A; BEiT, Bao et al. 2021,
    section 2.2, has those of a discrete VAE). Distances are Euclidean, over the values that are present.

    The centroids are saved with the model: a run, or a file of its weights, opens without the codebook's file.
    """

    class Config(Loss.Config):
        path: str = Field(min_length=1, description="the codebook, .safetensors; `mmmask codebook` writes it")
        ids: int = Field(gt=1, le=2**17, description="number of centroids")
        of: Annotated[Component.Config, ChosenByName("loss")] = Field(
            description="the loss whose targets become ids: hog, pixels, latents"
        )
        dim: int | None = Field(
            default=None, gt=0, description="numbers of a centroid; told by the file, and written down with the run"
        )

        @property
        def needs_teacher(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - `of` tells
            """Whether the inner loss does."""
            return getattr(self.of, "needs_teacher", False)

        @model_validator(mode="after")
        def _told_by_the_file(self) -> CodebookLoss.Config:
            if self.dim is None:
                with suppress(MmmaskError):  # said when a model is built, as only then a codebook is needed
                    object.__setattr__(self, "dim", _read(self)["centroids"].shape[1])
            return self

    config: Config  # pyright: ignore[reportIncompatibleVariableOverride] - narrower
    centroids: Tensor
    counts: Tensor

    def __init__(self, config: Config, teacher: Encoder | None = None) -> None:
        nn.Module.__init__(self)
        super().__init__(config)
        self.of: Loss = build("loss", config.of, **({"teacher": teacher} if config.needs_teacher else {}))
        counts = torch.zeros(config.ids, dtype=torch.int64)
        found = {"centroids": torch.zeros(config.ids, config.dim or 1), "counts": counts}
        with suppress(MmmaskError):
            read = _read(config)
            if read["centroids"].shape[1] == config.dim:
                found = read
        for name, tensor in found.items():
            self.register_buffer(name, tensor.to(torch.get_default_device()))
        self._is_known = False

    @property
    def stages(self) -> Any:  # noqa: ANN401 - as Loss.stages
        """Stages of the inner loss."""
        return self.of.stages

    def prediction_dim(self, spec: TokenSpec) -> int:
        """One logit per id.

        Raises:
            MmmaskError: there is no codebook, or it is of other targets.
        """
        dim = self.of.prediction_dim(spec)
        if self.config.dim != dim:
            if self.config.dim is None:
                _read(self.config)
            raise MmmaskError(
                f"{_where(self.config)}: centroids of {self.config.dim} numbers, and targets of "
                f"{self.config.of.name!r} have {dim} here: write one for this experiment, `mmmask codebook EXPERIMENT`"
            )
        return self.config.ids

    @torch.no_grad()
    def target(self, tokens: Tokens, index: Tensor, *latents: Latents) -> Tensor:
        """(batch, predicted, 1) ids, int64; of tokens without any present value the number of ids.

        Raises:
            MmmaskError: there are no centroids: they were neither in the file nor in weights that were loaded.
        """
        self._check_known()
        values = self.of.target(tokens, index, *latents)  # pyright: ignore[reportCallIssue] - of a teacher's latents
        values, present = present_values(values, self.centroids.shape[1], tokens.spec.gaps)
        rows = values.flatten(0, 1), None if present is None else present.flatten(0, 1)
        ids = nearest(*rows, self.centroids)[0].view(*values.shape[:2], 1)
        return ids if present is None else ids.masked_fill(~present.any(-1, keepdim=True), self.config.ids)

    def error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(batch, predicted), float32 or wider; 0 without an id."""
        wide = prediction.to(torch.promote_types(prediction.dtype, torch.float32))
        logits, ids = wide.flatten(0, 1), target.flatten()
        return F.cross_entropy(logits, ids, reduction="none", ignore_index=self.config.ids).view(target.shape[:2])

    def baseline(self, tokens: Tokens, mask: Mask) -> Tensor:
        """Log frequencies of the ids among the tokens that the codebook was made of, with add-one smoothing."""
        counts = self.counts + 1
        return (counts / counts.sum()).log().expand(*mask.predicted.shape, -1)

    @property
    def needs_statistics(self) -> bool:
        """Whether the inner loss does."""
        return self.of.needs_statistics

    @torch.no_grad()
    def restore(self, prediction: Tensor, tokens: Tokens, index: Tensor, statistics: Tensor | None) -> Tensor:
        """Content of the mean centroid, weighted by probability, as the inner loss restores it; raises as that does."""
        return self.of.restore(prediction.float().softmax(-1) @ self.centroids.float(), tokens, index, statistics)

    def _check_known(self) -> None:
        """Refuses centroids that nobody gave it. Looked at once, as a GPU is waited for."""
        if self._is_known or self.centroids.is_meta:
            return
        if not self.counts.any():
            _read(self.config)
            raise MmmaskError(f"{_where(self.config)}: other centroids than the settings say: `dim`")
        self._is_known = True


def present_values(target: Tensor, dim: int, gaps: bool) -> tuple[Tensor, Tensor | None]:
    """Values of a loss's target (..., dim), 0 where missing, and which are present; None for all.

    Args:
        target: with NaN where missing, or with weights beside the values (..., 2 * dim).
        gaps: whether some may be missing.

    Raises:
        MmmaskError: the target is no such values.
    """
    if not target.is_floating_point() or target.shape[-1] not in (dim, 2 * dim):
        raise MmmaskError("loss 'codebook': targets that are ids already have no centroids: take their own loss")
    target = target.float()
    if target.shape[-1] == 2 * dim:
        values, weights = target.chunk(2, dim=-1)
        return values, weights > 0 if gaps else None
    return (target.nan_to_num(), ~target.isnan()) if gaps else (target, None)


def save_codebook(path: Path, centroids: Tensor, counts: Tensor, of: Component.Config) -> None:
    """Writes centroids (ids, dim), how many tokens each had, (ids,), and what they are of.

    Raises:
        WriteError: it cannot be written.
    """
    write_tensors(path, {"centroids": centroids, "counts": counts}, {MADE_OF: of.model_dump_json()})


def _read(config: CodebookLoss.Config) -> dict[str, Tensor]:
    """Centroids and counts.

    Raises:
        MmmaskError: there is no such file, it is no codebook, or one of other settings.
    """
    from safetensors import SafetensorError, safe_open

    path, where, write = os.path.expanduser(config.path), _where(config), "`mmmask codebook EXPERIMENT` writes one"
    if not os.path.exists(path):
        raise MmmaskError(f"{where}: there is no such file: {write}")
    try:
        with safe_open(path, "pt") as file:
            of = json.loads((file.metadata() or {})[MADE_OF])
            tensors = {name: file.get_tensor(name) for name in ("centroids", "counts")}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise MmmaskError(f"{where}: it is no codebook, or damaged: {write}") from error
    if of != (wanted := config.of.model_dump(mode="json")):
        raise MmmaskError(f"{where}: made of {json.dumps(of)}, and `of` says {json.dumps(wanted)}: {write} of that")
    if len(tensors["counts"]) != config.ids:
        raise MmmaskError(
            f"{where}: it has {len(tensors['counts'])} ids, and `ids` says {config.ids}: {write} with that many"
        )
    return tensors


def _where(config: CodebookLoss.Config) -> str:
    return f"loss 'codebook': path: {config.path}"

"""Pictures of what a model sees and makes of it: samples as training sees them; original, masked, reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from mmmask.data.samples import SampleLoader
from mmmask.interfaces import (
    BadSample,
    Batch,
    Mask,
    MaskContext,
    Masker,
    Modality,
    Preparation,
    Sample,
    Tokens,
)
from mmmask.interfaces.naming import name_within
from mmmask.model.masks import draw_mask, require_masked
from mmmask.model.model import Model
from mmmask.randomness import derive_seed, sample_noise

GAP, MARGIN, PANEL_HEIGHT, HEADING = 6, 12, 144, 22
INK, PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Reconstruction:
    """Samples of one part, masked in one way and reconstructed.

    Content (batch, tokens, content_dim): raw values, or ids, with the vocabulary's size where a token is masked.
    """

    label: str
    masked: Tensor
    restored: Tensor


@torch.no_grad()
def reconstruct(
    model: Model,
    stream: str,
    batch: Tensor | Batch,
    maskers: Mapping[str, Masker] | None = None,
    true_statistics: bool = False,
    seed: int | None = None,
    given: Sequence[str] = (),
) -> dict[str, tuple[Tokens, list[Reconstruction]]]:
    """Masks, predicts and puts together what was seen and what was predicted: {target: its tokens, and of each masker}.

    Args:
        batch: (batch, *sample_shape) on the model's device.
        maskers: {label: masker}; by default the stream's own, labelled with its mask ratio.
        true_statistics: undo a normalised target with the tokens' true statistics, which a model cannot know, instead
            of those estimated from the visible tokens.
        seed: of the masks of `maskers`; by default the model's.
        given: parts of the samples that are visible whole, all others masked, instead of `maskers`.

    Raises:
        NotImplementedError: the stream's objective, or the loss of every target, does not predict content.
    """
    model.eval()
    batch = batch if isinstance(batch, Batch) else Batch({stream: batch})
    own = {short: model.tokenize(part, batch.parts[short]) for short, part in model.parts[stream].items()}
    size, device = len(batch), next(iter(own.values())).content.device
    root = derive_seed(model.seed if seed is None else seed, "picture")
    found: dict[str, tuple[Tokens, list[Reconstruction]]] = {}
    problem = None
    for label, masker in (maskers or {"": None}).items():
        masks: dict[str, Any] | None = None
        if given:
            masks = {stream: {name: torch.zeros_like(own[name].content[..., 0], dtype=torch.bool) for name in given}}
        elif masker is not None:
            ((_, tokens),) = own.items()
            context = MaskContext(tokens.grid, size, device, sample_noise(root, 0, size, device), 0, tokens)
            masks = {stream: draw_mask(masker, None, context)}
            require_masked(masks[stream], masker, tokens.grid)
        plans = model.plan({stream: batch}, masks)
        for target, output in model(plans=plans).streams.items():
            objective, own = model.learned_by[target]
            try:
                restored = model.objective_named(objective).restore(
                    plans[objective], own, output.predictions, true_statistics
                )
            except NotImplementedError as error:
                problem = error
                continue
            share = label or f"{output.mask.masked.float().mean().item():.0%} masked"
            made = Reconstruction(share, *_compose(output.tokens, output.mask, restored))
            found.setdefault(target, (output.tokens, []))[1].append(made)
    if problem is not None and not found:
        raise problem
    return found


def pictures_of(
    model: Model,
    stream: str,
    reconstructions: Mapping[str, tuple[Tokens, list[Reconstruction]]],
    captions: Sequence[str] = (),
    note: str = "",
) -> Image.Image:
    """A page of what `reconstruct` made, target under target.

    Raises:
        NotImplementedError: no modality of them draws pictures.
    """
    pages, problem = [], None
    for target, (tokens, made) in reconstructions.items():
        objective, name = model.learned_by[target]
        part = model.objective_named(objective).targets[name].part
        own = [f"{caption}, {name_within(target)}".rstrip(", ") for caption in captions]
        try:
            pages.append(picture(tokens, made, model, part, own, note))
        except NotImplementedError as error:
            problem = error
    if problem is not None and not pages:
        raise problem
    return stacked(pages)


def picture(
    tokens: Tokens,
    reconstructions: Sequence[Reconstruction],
    model: Model,
    part: str,
    captions: Sequence[str] = (),
    note: str = "",
) -> Image.Image:
    """Figure 4 of the OmniMAE paper: original, masked, reconstruction, for every masker.

    Narrow panels stand side by side, a row per sample; wide ones (film strips, spectrograms) lie under each other.
    """
    panels = partial(_panels, model.modalities[part], tokens)
    columns = [("original", panels(tokens.raw()))]
    for reconstruction in reconstructions:
        columns.append((reconstruction.label, panels(reconstruction.masked)))
        columns.append(("reconstruction", panels(reconstruction.restored)))
    return _page(columns, captions, note)


def draw_training_samples(loader: SampleLoader, model: Model, samples: int = 4, epochs: int = 6) -> Image.Image:
    """The first samples of a stream: the deterministic view, then what training sees of them epoch by epoch.

    Raises:
        SourceError: too many samples in a row are bad.
    """
    good: list[Sample] = []
    for index in range(len(loader.source)):
        with suppress(BadSample):
            good.append(loader.plain(index))
        if len(good) == samples:
            break
    first = [sample.index for sample in good]
    batches = [("original", Batch.of(good, loader.preparation.collate))]
    for epoch in range(epochs):
        drawn = loader.batch([(epoch, index) for index in first]).batch
        batches.append((f"epoch {epoch}", drawn.map(lambda part: part[:: loader.replicate])))
    pages = []
    for short, part in model.parts[loader.stream].items():
        columns, modality = [], model.modalities[part]
        for label, batch in batches:
            tokens = modality.tokenize(batch.parts[short])
            columns.append((label, _panels(modality, tokens, tokens.raw())))
        pages.append(_page(columns, [loader.source.describe(index)[-40:] for index in first], ""))
    return stacked(pages)


def stacked(images: Sequence[Image.Image]) -> Image.Image:
    """Pictures under each other on one page."""
    page = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), PAPER)
    top = 0
    for image in images:
        page.paste(image, (0, top))
        top += image.height
    return page


def statistics_note(model: Model, stream: str, true_statistics: bool) -> str:
    """Says which statistics a picture used, where the target is normalised."""
    if not any(own.needs_statistics(stream) for own in model.objectives_of(stream).values()):
        return ""
    if true_statistics:
        return "mean and deviation of masked tokens: the true ones, which the model cannot know"
    return "mean and deviation of masked tokens: estimated from visible tokens"


def _compose(tokens: Tokens, mask: Mask, restored: Tensor) -> tuple[Tensor, Tensor]:
    """Masked and reconstructed content, raw: what is visible, with a mark or with predictions in the rest."""
    ids = tokens.spec.vocab_size
    content = tokens.raw() if ids is not None else tokens.raw().float()
    masked = torch.where(mask.masked.unsqueeze(-1), tokens.spec.middle if ids is None else ids, content)
    index = mask.predicted.unsqueeze(-1).expand(-1, -1, content.shape[-1])
    # of parts that show different numbers of tokens, predictions of visible ones come along
    return masked, torch.where(mask.masked.unsqueeze(-1), masked.scatter(1, index, restored.to(content.dtype)), content)


def _panels(modality: Modality, tokens: Tokens, content: Tensor) -> list[np.ndarray]:
    shown = content if tokens.spec.vocab_size is not None else tokens.spec.clamp(content)
    return [_panel(modality.preparation, sample) for sample in modality.detokenize(shown, tokens.grid).cpu()]


def _panel(preparation: Preparation, sample: Tensor) -> np.ndarray:
    shown = preparation.show(sample)
    scale = max(1, round(PANEL_HEIGHT / shown.shape[0]))
    return shown.repeat(scale, axis=0).repeat(scale, axis=1)  # whole multiples: no smoothing of what was predicted


def _page(columns: Sequence[tuple[str, list[np.ndarray]]], captions: Sequence[str], note: str) -> Image.Image:
    height, width = columns[0][1][0].shape[:2]
    samples, wide = len(columns[0][1]), width > 2 * height
    heading = 0 if wide else HEADING  # of the page; wide panels have their label each
    above = HEADING - 4 if wide else HEADING
    across, down = (0, height + HEADING) if wide else (width + GAP, 0)  # from column to column
    block = (len(columns) * down if wide else height + (HEADING if captions else 0)) + GAP  # from sample to sample
    page_width = 2 * MARGIN + (len(columns) - 1) * across + width
    page_height = 2 * MARGIN + heading + samples * block - GAP
    page = Image.new("RGB", (page_width, page_height + (HEADING if note else 0)), PAPER)
    write = partial(ImageDraw.Draw(page).text, fill=INK, font_size=13)
    for sample in range(samples):
        for column, (label, panels) in enumerate(columns):
            left, top = MARGIN + column * across, MARGIN + above + sample * block + column * down
            page.paste(Image.fromarray(panels[sample]), (left, top))
            if wide and captions and column == 0:
                write((left, top - above), f"{captions[sample]}: {label}")
            elif wide or sample == 0:
                write((left, top - above), label)
        if captions and not wide:
            write((MARGIN, MARGIN + above + sample * block + height + 2), captions[sample])
    write((MARGIN, page_height - MARGIN + 4), note)
    return page

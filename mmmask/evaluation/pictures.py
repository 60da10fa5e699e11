"""Pictures of what a model sees and makes of it: original, masked, reconstruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mmmask.interfaces import Batch, Mask, MaskContext, Masker, Preparation, Tokens
from mmmask.model.masks import draw_mask
from mmmask.model.model import Model
from mmmask.randomness import derive_seed, sample_noise

GAP, MARGIN, PANEL_HEIGHT, HEADING = 6, 12, 144, 22
INK, PAPER = (40, 40, 40), (255, 255, 255)


@dataclass(frozen=True)
class Reconstruction:
    """One stream's samples, masked in one way and reconstructed.

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
) -> tuple[Tokens, list[Reconstruction]]:
    """Masks, predicts and puts together what was seen and what was predicted.

    Args:
        batch: (batch, *sample_shape) on the model's device.
        maskers: {label: masker}; by default the stream's own, labelled with its mask ratio.
        true_statistics: undo a normalised target with the tokens' true statistics, which a model cannot know, instead
            of those estimated from the visible tokens.
        seed: of the masks of `maskers`; by default the model's.

    Raises:
        NotImplementedError: the stream's objective or loss does not predict content.
    """
    model.eval()
    batch = batch if isinstance(batch, Batch) else Batch({stream: batch})
    tokens = model.tokenize(stream, batch.content)
    given: dict[str, Mask | None] = {} if maskers else {"": None}
    for label, masker in (maskers or {}).items():
        content = tokens.content
        noise = sample_noise(
            derive_seed(model.seed if seed is None else seed, "picture"), 0, len(content), content.device
        )
        given[label] = draw_mask(masker, None, MaskContext(tokens.grid, len(content), content.device, noise, 0, tokens))
    found = []
    for label, mask in given.items():
        plans = model.plan({stream: batch}, None if mask is None else {stream: mask})
        (plan,) = plans.values()
        output = model(plans=plans).streams[stream]
        restored = model.objective(stream).restore(plan, stream, output.predictions, true_statistics)
        share = f"{output.mask.masked.float().mean().item():.0%} masked"
        found.append(Reconstruction(label or share, *_compose(tokens, output.mask, restored)))
    return tokens, found


def picture(
    tokens: Tokens,
    reconstructions: Sequence[Reconstruction],
    model: Model,
    stream: str,
    captions: Sequence[str] = (),
    note: str = "",
) -> Image.Image:
    """Figure 4 of the OmniMAE paper: original, masked, reconstruction, for every masker.

    Narrow panels stand side by side, a row per sample; wide ones (film strips, spectrograms) lie under each other.
    """
    modality = model.modalities[stream]
    show = modality.preparation

    def panels(content: Tensor) -> list[np.ndarray]:
        shown = content if tokens.spec.vocab_size is not None else tokens.spec.clamp(content)
        return [_panel(show, sample) for sample in modality.detokenize(shown, tokens.grid).cpu()]

    columns = [("original", panels(tokens.raw()))]
    for reconstruction in reconstructions:
        columns.append((reconstruction.label, panels(reconstruction.masked)))
        columns.append(("reconstruction", panels(reconstruction.restored)))
    wide = columns[0][1][0].shape[1] > 2 * columns[0][1][0].shape[0]
    return _under_each_other(columns, captions, note) if wide else _side_by_side(columns, captions, note)


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
    if not model.objective(stream).needs_statistics(stream):
        return ""
    if true_statistics:
        return "mean and deviation of masked tokens: the true ones, which the model cannot know"
    return "mean and deviation of masked tokens: estimated from visible tokens"


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes a picture, making its folder; the ending decides the format.

    Raises:
        ValueError: no image format has this ending.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def _compose(tokens: Tokens, mask: Mask, restored: Tensor) -> tuple[Tensor, Tensor]:
    """Masked and reconstructed content, raw: what is visible, with a mark or with predictions in the rest."""
    ids = tokens.spec.vocab_size
    content = tokens.raw() if ids is not None else tokens.raw().float()
    masked = torch.where(mask.masked.unsqueeze(-1), tokens.spec.middle if ids is None else ids, content)
    index = mask.predicted.unsqueeze(-1).expand(-1, -1, content.shape[-1])
    return masked, masked.scatter(1, index, restored.to(content.dtype))


def _panel(preparation: Preparation, sample: Tensor) -> np.ndarray:
    shown = preparation.show(sample)
    scale = max(1, round(PANEL_HEIGHT / shown.shape[0]))
    return shown.repeat(scale, axis=0).repeat(scale, axis=1)  # whole multiples: no smoothing of what was predicted


def _side_by_side(columns: list[tuple[str, list[np.ndarray]]], captions: Sequence[str], note: str) -> Image.Image:
    height, width = columns[0][1][0].shape[:2]
    rows = len(columns[0][1])
    caption = HEADING if captions else 0
    page = _page(
        2 * MARGIN + len(columns) * (width + GAP) - GAP,
        2 * MARGIN + HEADING + rows * (height + caption + GAP) - GAP,
        note,
    )
    draw = ImageDraw.Draw(page)
    for column, (label, panels) in enumerate(columns):
        left = MARGIN + column * (width + GAP)
        draw.text((left, MARGIN), label, fill=INK, font=_font())
        for row, panel in enumerate(panels):
            top = MARGIN + HEADING + row * (height + caption + GAP)
            page.paste(Image.fromarray(panel), (left, top))
    for row, text in enumerate(captions):
        top = MARGIN + HEADING + row * (height + caption + GAP) + height + 2
        draw.text((MARGIN, top), text, fill=INK, font=_font())
    return page


def _under_each_other(columns: list[tuple[str, list[np.ndarray]]], captions: Sequence[str], note: str) -> Image.Image:
    height, width = columns[0][1][0].shape[:2]
    samples = len(columns[0][1])
    line = height + HEADING
    page = _page(2 * MARGIN + width, 2 * MARGIN + samples * (len(columns) * line + GAP) - GAP, note)
    draw = ImageDraw.Draw(page)
    for sample in range(samples):
        for position, (label, panels) in enumerate(columns):
            top = MARGIN + sample * (len(columns) * line + GAP) + position * line
            caption = f"{captions[sample]}: {label}" if captions and position == 0 else label
            draw.text((MARGIN, top), caption, fill=INK, font=_font())
            page.paste(Image.fromarray(panels[sample]), (MARGIN, top + HEADING - 4))
    return page


def _page(width: int, height: int, note: str) -> Image.Image:
    page = Image.new("RGB", (width, height + (HEADING if note else 0)), PAPER)
    if note:
        ImageDraw.Draw(page).text((MARGIN, height - MARGIN + 4), note, fill=INK, font=_font())
    return page


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=13)

"""Formats of published checkpoints, one file per system."""

import csv
import json
from importlib.resources import files

from mmmask.hooks import Publish, Register, hookimpl

FORMATS = {
    "convmae": ("convmae:ConvMAEFormat", "ConvMAE: pretrained, the encoder alone"),
    "huggingface_videomae": (
        "huggingface:HuggingFaceVideoMAEFormat",
        "transformers' VideoMAE and its classifiers, with config.json",
    ),
    "huggingface_vitmae": (
        "huggingface:HuggingFaceViTMAEFormat",
        "transformers' ViTMAE, and ViT classifiers, with config.json",
    ),
    "mae": ("mae:MAEFormat", "MAE: pretrained, the encoder alone, fine-tuned"),
    "mae_st": ("mae_st:MAESTFormat", "MAE-ST: pretrained, the encoder alone, fine-tuned"),
    "multimae": ("multimae:MultiMAEFormat", "MultiMAE: pretrained on aligned modalities, with decoders or without"),
    "omnimae": ("omnimae:OmniMAEFormat", "OmniMAE: pretrained (hub, trainer), fine-tuned"),
    "simmim": ("simmim:SimMIMFormat", "SimMIM: ViT and Swin, pretrained and fine-tuned"),
    "timm_vit": ("timm:TimmFormat", "timm's VisionTransformer, mostly to be written"),
    "videomae": ("videomae:VideoMAEFormat", "VideoMAE: pretrained, the encoder alone, fine-tuned"),
    "videomaev2": ("videomae:VideoMAEV2Format", "VideoMAE V2: as videomae"),
}
"""Name -> class within mmmask_zoo, description."""


@hookimpl
def register_components(register: Register) -> None:
    """Names the formats."""
    for name, (target, description) in FORMATS.items():
        register("format", name, f"mmmask_zoo.{target}", description)


@hookimpl
def publish_checkpoints(publish: Publish) -> None:
    """Names the checkpoints that the systems' authors published.

    They stand in `published.csv`, one a row, named `system/size/stage` after the format that reads it. Addresses,
    licences and figures are those that the systems' own pages state; no file is kept here. Figures are accuracies in
    percent. A revision stands for `main` in an address where the page that lists the file was of that revision.
    ConvMAE's fine-tuned file is not among them: how it pools its features is not known, and the format refuses it.
    """
    with files("mmmask_zoo").joinpath("published.csv").open(encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            publish(
                row["name"],
                row["address"],
                row["name"].partition("/")[0],
                row["licence"],
                row["description"],
                by_hand=row["by_hand"] == "yes",
                encoder_alone=row["encoder_alone"] == "yes",
                options=json.loads(row["options"] or "{}"),
            )

"""Formats of published checkpoints, one file per system."""

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
    "omnimae": ("omnimae:OmniMAEFormat", "OmniMAE: pretrained (hub, trainer), fine-tuned"),
    "simmim": ("simmim:SimMIMFormat", "SimMIM: pretrained ViT and Swin, fine-tuned ViT"),
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
    """Names the checkpoints that the systems' authors published."""
    from mmmask_zoo.published import publish_all

    publish_all(publish)

"""Formats of published checkpoints, one file per system."""

from mmmask.hooks import Publish, Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the formats."""
    here = "mmmask_zoo"
    register("format", "convmae", f"{here}.convmae:ConvMAEFormat", "ConvMAE: pretrained, the encoder alone")
    vitmae = f"{here}.huggingface_vitmae:HuggingFaceViTMAEFormat"
    register("format", "huggingface_vitmae", vitmae, "transformers' ViTMAE, and ViT classifiers; also written")
    videomae = f"{here}.huggingface_videomae:HuggingFaceVideoMAEFormat"
    register("format", "huggingface_videomae", videomae, "transformers' VideoMAE and its classifiers; also written")
    register("format", "mae", f"{here}.mae:MAEFormat", "MAE: pretrained, the encoder alone, fine-tuned")
    register("format", "mae_st", f"{here}.mae_st:MAESTFormat", "MAE-ST: pretrained, the encoder alone, fine-tuned")
    register("format", "omnimae", f"{here}.omnimae:OmniMAEFormat", "OmniMAE: pretrained (hub, trainer), fine-tuned")
    register("format", "simmim", f"{here}.simmim:SimMIMFormat", "SimMIM: pretrained ViT and Swin, fine-tuned ViT")
    register("format", "timm_vit", f"{here}.timm:TimmFormat", "timm's VisionTransformer, mostly to be written")
    register(
        "format", "videomae", f"{here}.videomae:VideoMAEFormat", "VideoMAE: pretrained, the encoder alone, fine-tuned"
    )
    register("format", "videomaev2", f"{here}.videomaev2:VideoMAEV2Format", "VideoMAE V2: as videomae")


@hookimpl
def publish_checkpoints(publish: Publish) -> None:
    """Names the checkpoints that the systems' authors published."""
    from mmmask_zoo.published import publish_all

    publish_all(publish)

"""Shared by images and videos: the base of their modalities, augmentations, resizing, limits, pictures."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the augmentations; torch is not imported before they are used."""
    register("augmentation", "crop", "mmmask_pixels.augmentations:Crop", "random resized crop")
    register("augmentation", "flip", "mmmask_pixels.augmentations:Flip", "mirrored left and right, or not")
    register("augmentation", "centre_crop", "mmmask_pixels.augmentations:CentreCrop", "the greatest centred crop")
    register("augmentation", "pad_crop", "mmmask_pixels.augmentations:PadCrop", "random shift, after padding")
    randomly = "mmmask_pixels.rand_augment:RandAugment"
    register("augmentation", "rand_augment", randomly, "random operations of colour and geometry")
    register("augmentation", "color_jitter", "mmmask_pixels.color_jitter:ColorJitter", "brightness, contrast, hue ...")
    register("augmentation", "erase", "mmmask_pixels.erase:Erase", "random erasing, by noise or one value")

"""Shared by images and videos: the base of their modalities, augmentations, resizing, limits, pictures."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the augmentations; torch is not imported before they are used."""
    register("augmentation", "crop", "mmmask_pixels.augmentations:Crop", "random resized crop")
    register("augmentation", "flip", "mmmask_pixels.augmentations:Flip", "mirrored left and right, or not")

"""Images: JPEG, PNG, WebP and what else Pillow reads."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the modality; torch is not imported before it is used."""
    register("modality", "image", "mmmask_image.modality:ImageModality", "photographs and other still pictures")

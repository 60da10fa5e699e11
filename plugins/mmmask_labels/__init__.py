"""Class maps: a class for every pixel."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the modality; torch is not imported before it is used."""
    register("modality", "labels", "mmmask_labels.modality:LabelsModality", "maps of classes, a class for every pixel")

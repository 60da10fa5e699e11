"""Formats of published checkpoints, one file per system."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the formats."""
    register(
        "format", "omnimae", "mmmask_zoo.omnimae:OmniMAEFormat", "OmniMAE's pretraining checkpoints, hub and trainer"
    )

"""Formats of published checkpoints, one file per system."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the formats."""
    here = "mmmask_zoo"
    register("format", "mae", f"{here}.mae:MAEFormat", "MAE: pretrained, the encoder alone, fine-tuned")
    register("format", "omnimae", f"{here}.omnimae:OmniMAEFormat", "OmniMAE: pretrained (hub, trainer), fine-tuned")

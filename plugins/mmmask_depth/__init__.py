"""Depth maps, in metres, with missing values."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the components; torch is not imported before they are used."""
    register("modality", "depth", "mmmask_depth.modality:DepthModality", "depth maps in metres, with gaps")
    register("loss", "depth", "mmmask_depth.loss:DepthLoss", "depth, standardised per sample without its extremes")

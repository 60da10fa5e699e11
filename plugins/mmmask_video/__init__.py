"""Videos: clips out of MP4, AVI, MKV, WebM and MOV files."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the modality; torch is not imported before it is used."""
    register("modality", "video", "mmmask_video.modality:VideoModality", "clips of videos, cut into tubelets")

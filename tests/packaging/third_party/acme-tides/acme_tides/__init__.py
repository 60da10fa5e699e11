"""Tides for mmmask, by people who have never seen its repository."""

from mmmask.hooks import Register, hookimpl

MMMASK_INTERFACE = 2


@hookimpl
def register_components(register: Register) -> None:
    register("modality", "tide", "acme_tides.modality:TideModality", "the water at a gauge, hour by hour")
    register("source", "tide_gauge", "acme_tides.source:GaugeSource", "a gauge with two tides, from a formula")
    register("masker", "ebb", "acme_tides.masker:EbbMasker", "masks the hours before a time of day")

"""Audio: log-mel spectrograms of sound files and of the sound tracks of videos."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the modality and its maskers; torch is not imported before they are used."""
    maskers = "mmmask_audio.maskers"
    register("modality", "audio", "mmmask_audio.modality:AudioModality", "sound, as patches of a log-mel spectrogram")
    register("masker", "time_bands", f"{maskers}:TimeBandsMasker", "whole steps in time of a grid (time, frequency)")
    register("masker", "frequency_bands", f"{maskers}:FrequencyBandsMasker", "whole rows of frequency of such a grid")
    both = "whole steps in time and whole rows of frequency together"
    register("masker", "time_frequency_bands", f"{maskers}:TimeFrequencyBandsMasker", both)

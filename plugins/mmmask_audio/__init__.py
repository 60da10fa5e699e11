"""Audio: log-mel spectrograms of sound files and of the sound tracks of videos."""

from mmmask.hooks import Register, hookimpl


@hookimpl
def register_components(register: Register) -> None:
    """Names the modality, its masker and its augmentation; torch is not imported before they are used."""
    register("modality", "audio", "mmmask_audio.modality:AudioModality", "sound, as patches of a log-mel spectrogram")
    bands = "mmmask_audio.maskers:TimeFrequencyBandsMasker"
    register("masker", "time_frequency_bands", bands, "whole frames and whole bands of a grid (time, frequency)")
    masks = "mmmask_audio.augmentations:SpecAugment"
    register("augmentation", "spec_augment", masks, "masked stretches of time and of frequency")

"""Losses that need no modality."""

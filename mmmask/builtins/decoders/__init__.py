"""Decoders of masked tokens."""

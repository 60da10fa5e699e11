"""Encoders that drop, replace or convolve masked tokens."""

"""Measured speed, and trial steps."""

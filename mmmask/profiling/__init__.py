"""Measured speed, and computed operations and memory."""

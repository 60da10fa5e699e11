"""Predicting masked tokens."""

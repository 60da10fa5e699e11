"""Telling what belongs together."""

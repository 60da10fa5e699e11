"""Callbacks of runs."""

"""Loading foreign checkpoints. The formats themselves are plugins."""

from mmmask.interop.loading import InteropError, Loaded, Report, load, read

__all__ = ["InteropError", "Loaded", "Report", "load", "read"]

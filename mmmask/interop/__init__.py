"""Loading foreign checkpoints. The formats themselves are plugins."""

from mmmask.interop.loading import Loaded, Report, load, read

__all__ = ["Loaded", "Report", "load", "read"]

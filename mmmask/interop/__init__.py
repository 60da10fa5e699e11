"""Foreign checkpoints, in and out. The formats themselves are components, most of them plugins'."""

from mmmask.errors import InteropError
from mmmask.interop.loading import Loaded, Report, load, read
from mmmask.interop.saving import save

__all__ = ["InteropError", "Loaded", "Report", "load", "read", "save"]

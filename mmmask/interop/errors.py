"""Errors of foreign checkpoints."""

from mmmask_registry import MmmaskError


class InteropError(MmmaskError):
    """A foreign checkpoint that cannot be found, read, recognised, fitted or written."""

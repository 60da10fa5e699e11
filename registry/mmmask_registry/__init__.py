"""Names for components, and finding the plugins that supply them. Knows neither torch nor mmmask."""

from mmmask_registry.discovery import BrokenPlugin, load_entry_points, load_plugin_file
from mmmask_registry.errors import BrokenComponent, DuplicateName, MmmaskError, UnknownName, did_you_mean, reason_of
from mmmask_registry.lazy import lazy_attributes
from mmmask_registry.registry import Entry, Registry

__all__ = [
    "BrokenComponent",
    "BrokenPlugin",
    "DuplicateName",
    "Entry",
    "MmmaskError",
    "Registry",
    "UnknownName",
    "did_you_mean",
    "lazy_attributes",
    "load_entry_points",
    "load_plugin_file",
    "reason_of",
]

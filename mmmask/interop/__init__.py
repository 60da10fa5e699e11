"""Foreign checkpoints, in and out. The formats themselves are components, most of them plugins'.

What is here besides loading and saving is what a format needs of the model: keys, settings, and the tables of positions
that mmmask computes and a file may hold.
"""

from mmmask.builtins.positions import flat_sinusoid_table, resize_relative_table, resize_table, sincos_2d_table
from mmmask.builtins.positions.relative import relative_index
from mmmask.builtins.windows import across_border
from mmmask.errors import InteropError
from mmmask.interop.loading import DECODERS, HEADS, Loaded, Report, load, model_settings, read
from mmmask.interop.saving import save
from mmmask.model.classifier import ClassifierSettings

__all__ = [
    "DECODERS",
    "HEADS",
    "ClassifierSettings",
    "InteropError",
    "Loaded",
    "Report",
    "across_border",
    "flat_sinusoid_table",
    "load",
    "model_settings",
    "read",
    "relative_index",
    "resize_relative_table",
    "resize_table",
    "save",
    "sincos_2d_table",
]

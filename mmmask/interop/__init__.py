"""Foreign checkpoints, in and out. The formats themselves are components, most of them plugins'.

Besides loading and saving: what a format needs of the model, that is keys, settings, and the tables of positions that
mmmask computes and a file may hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mmmask.interop.errors import InteropError
from mmmask_registry import lazy_attributes

if TYPE_CHECKING:
    from mmmask.builtins.encoders.windows import across_border
    from mmmask.builtins.positions import flat_sinusoid_table, resize_relative_table, resize_table, sincos_2d_table
    from mmmask.builtins.positions.relative import relative_index
    from mmmask.interop.fine_tuned import CLASSIFIER, CLASSIFIERS, LABEL_SET, classification
    from mmmask.interop.loading import DECODERS, HEADS, Loaded, Report, load, model_settings, read
    from mmmask.interop.saving import Converted, convert, save
    from mmmask.interop.starting import resize_kernel, start_from
    from mmmask.interop.teaching import with_teacher

# Imported on first use: names of published checkpoints are listed without torch.
__getattr__ = lazy_attributes(__name__)

__all__ = [
    "CLASSIFIER",
    "CLASSIFIERS",
    "DECODERS",
    "HEADS",
    "Converted",
    "LABEL_SET",
    "InteropError",
    "Loaded",
    "Report",
    "across_border",
    "classification",
    "convert",
    "flat_sinusoid_table",
    "load",
    "model_settings",
    "read",
    "relative_index",
    "resize_kernel",
    "resize_relative_table",
    "resize_table",
    "save",
    "sincos_2d_table",
    "start_from",
    "with_teacher",
]

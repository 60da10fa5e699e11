"""pyarrow, an optional library, and what reader and writer of parquet files agree on."""

from __future__ import annotations

from mmmask import MmmaskError

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ImportError as error:
    raise MmmaskError("parquet files need the library pyarrow: pip install 'mmmask[parquet]'") from error

__all__ = ["FEATURES", "pa", "pq"]

FEATURES = b"huggingface"
"""Key of a file's metadata: JSON that describes the columns, such as the names of classes."""

"""Logs of one JSON object a line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def append_jsonl(path: Path, line: dict[str, Any]) -> None:
    """Adds one object to a log; NaN and infinity, for which JSON has no word, become null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_strict(line), allow_nan=False) + "\n")


def _strict(value: Any) -> Any:  # noqa: ANN401 - plain data
    if isinstance(value, dict):
        return {key: _strict(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

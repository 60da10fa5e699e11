"""Logs of one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects of a log, if there is one; a last line that was cut off in writing is dropped."""
    lines: list[dict[str, Any]] = []
    if not path.exists():
        return lines
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break  # what follows a torn line was written by nobody
    return lines


def append_jsonl(path: Path, line: dict[str, Any]) -> None:
    """Adds one object to a log."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

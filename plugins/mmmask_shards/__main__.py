"""`python -m mmmask_shards pack FOLDER OUTPUT`: packs a folder into tar or parquet files."""

from __future__ import annotations

import argparse
import re
import sys

from mmmask import MmmaskError
from mmmask_shards import pack

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMG]I?B)?", text.upper())
    if found is None or not (size := int(float(found[1]) * UNITS[found[2] or ""])):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 1GB or 500MB")
    return size


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 1 on a user's error."""
    parser = argparse.ArgumentParser(
        "python -m mmmask_shards", description="tar files in the layout of WebDataset, and parquet files"
    )
    command = parser.add_subparsers(required=True, metavar="COMMAND").add_parser("pack", help="packs a folder")
    command.add_argument("folder", help="its subfolders become those of the members' names, which are labels")
    command.add_argument(
        "output", help="path of the files with a place for a number: train-%%06d.tar or train-%%06d.parquet"
    )
    command.add_argument("--max-size", type=_bytes, default=10**9, help="largest file (default: 1GB)")
    command.add_argument("--endings", nargs="+", default=(), help="pack files with these only, such as .jpg .json")
    command.add_argument("--leave-out", metavar="FILE", help="of `mmmask scan`: pack none of the bad samples it names")
    given = parser.parse_args(arguments)
    try:
        pack(given.folder, given.output, given.max_size, tuple(given.endings), print, given.leave_out)
    except MmmaskError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A folder, tar and parquet files of the same samples, every twentieth cut off: packing, opening, reading, scanning.

python benchmarks/packed.py image|video FOLDER [COPIES]: rows of a Markdown table.
"""

import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from mmmask.data.scanning import scan
from mmmask.data.streams import sample_loader
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import Source
from mmmask_shards import pack, parquet

MODALITIES = {
    "image": {"name": "image", "size": 224, "patch_size": [2, 16, 16]},
    "video": {"name": "video", "size": 224, "num_frames": 16, "patch_size": [2, 16, 16]},
}
ROWS = {"image": 100, "video": 10}
"""Rows of a row group, as data sets are published."""
READS = 500


def copied(folder: Path, target: Path, copies: int) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for copy in range(copies):
        for number, path in enumerate(files):
            placed = target / f"{number % 10}" / f"{copy:03}_{path.name}"
            placed.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            placed.write_bytes(data[: len(data) // 3] if (copy * len(files) + number) % 20 == 7 else data)


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> tuple[float, Any]:
    started = clock()
    found = work()
    return clock() - started, found


def reading(source: Source, order: list[int]) -> float:
    """CPU milliseconds for a sample, the best of three."""
    times = []
    for _ in range(3):
        parquet._kept.cache_clear()
        times.append(seconds(lambda: [source.load(index).read() for index in order], time.process_time)[0])
    return 1000 * min(times) / len(order)


def main(kind: str, folder: str, copies: str = "1") -> None:
    with tempfile.TemporaryDirectory() as place:
        here = Path(place)
        os.environ["FVCORE_CACHE"] = str(here / "cache")
        copied(Path(folder), here / "folder", int(copies))
        paths, packed = {"folder": here / "folder"}, {"folder": 0.0}
        for ending in ("tar", "parquet"):
            packed[ending], _ = seconds(lambda: pack(str(here / "folder"), str(here / f"{ending}/%d.{ending}")))  # noqa: B023
            paths[ending] = here / f"{ending}/*.{ending}"
        published = here / "published.parquet"
        whole = pq.read_table(sorted((here / "parquet").iterdir()))
        pq.write_table(whole, published, row_group_size=ROWS[kind])
        paths["published"] = published
        print("| | pack | open | read in turn | read at random | scan, two processes |\n|---|---|---|---|---|---|")
        for name, path in paths.items():
            component = {"tar": "shards", "published": "parquet"}.get(name, name)
            experiment = experiment_from_data(
                {
                    "model": {"encoder": {"name": "vit", "width": 24, "depth": 1, "num_heads": 2}},
                    "streams": {
                        "s": {
                            "modality": MODALITIES[kind],
                            "source": {"name": component, "path": str(path)},
                            "masker": "random",
                            "loss": "pixels",
                        }
                    },
                    "training": {"steps": 1},
                    "data": {"workers": 2},
                }
            )
            opening, loader = seconds(lambda: sample_loader(experiment, "s"))  # noqa: B023
            order = list(range(len(loader.source)))[:READS]
            rates = [reading(loader.source, order)]
            rates.append(reading(loader.source, random.Random(0).sample(range(len(loader.source)), len(order))))
            scanning, found = seconds(lambda: scan(loader, here / f"{name}.csv", experiment.data))  # noqa: B023
            first = f"{packed[name]:.1f} s" if packed.get(name) else ""
            done = f"{found.samples / scanning:.0f} /s, {found.bad} bad"
            print(
                f"| {name} | {first} | {opening:.2f} s | {' | '.join(f'{rate:.2f} ms' for rate in rates)} | {done} |",
                flush=True,
            )
        print(f"{found.samples} files, {found.size / 1e6:.0f} MB")


if __name__ == "__main__":
    main(*sys.argv[1:])

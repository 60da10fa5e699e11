"""Time and memory that a source of very many entries takes, before the first step and in the workers.

    python benchmarks/entries.py [--entries 10000000] [--files 200000] [--folder DIR]

Makes its data in a folder that is removed again: a list and a CSV of files that do not exist (nothing is decoded), tar
files that are empty but for the index beside them, and a folder of empty files. Every source is measured in a process
of its own. `listing`: CPU seconds of the source alone; `kept`: what it adds to the resident memory of the process that
trains; `peak`: the most that there was meanwhile. `start`: CPU seconds of `Streams` of an experiment with such a
source, with the digest of its names. `workers`: seconds until the first of two answers; `pickled`: what is sent to
them; `own`: memory of a worker that it does not share with the other, after so many samples by chance as LOOKED says.
`order`: CPU time of drawing a batch of 4096.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

LOOKED = 20_000
"""Samples that a worker is asked for."""
CLASSES, SHARDS = 1000, 1000
MIB = 2**20


def name_of(number: int) -> str:
    """Path of an entry, in folders of classes as ImageNet-21k has them."""
    return f"n{number % CLASSES:08d}/n{number % CLASSES:08d}_{number}.jpg"


def write_list(folder: Path, entries: int) -> dict[str, Any]:
    """`path,label` a line."""
    with (folder / "files.txt").open("w") as file:
        file.writelines(f"{name_of(number)},c{number % CLASSES}\n" for number in range(entries))
    return {"name": "list", "path": str(folder / "files.txt")}


def write_table(folder: Path, entries: int) -> dict[str, Any]:
    """A CSV with a header line."""
    with (folder / "files.csv").open("w") as file:
        file.write("path,label\n")
        file.writelines(f"{name_of(number)},c{number % CLASSES}\n" for number in range(entries))
    return {"name": "table", "path": str(folder / "files.csv")}


def write_shards(folder: Path, entries: int) -> dict[str, Any]:
    """Tar files without content, and the indexes that are kept beside them."""
    from mmmask_shards.index import FINE, ShardIndex, _keep, _places

    each = entries // SHARDS
    for shard in range(SHARDS):
        path = folder / f"shard-{shard:04d}.tar"
        path.touch()
        stat = path.stat()
        names = [name_of(shard * each + number) for number in range(each)]
        offsets = np.arange(each) * 10**5
        kinds = np.full(each, FINE)
        none = [""] * each
        index = ShardIndex(names, none, offsets, np.full(each, 10**5), kinds, none, -1, (0, stat.st_mtime_ns))
        _keep(_places(str(path), ".cls")[0], index)
    return {"name": "shards", "path": str(folder / f"shard-{{0000..{SHARDS - 1}}}.tar")}


def write_folder(folder: Path, entries: int) -> dict[str, Any]:
    """Empty files in folders of classes."""
    for number in range(entries):
        path = folder / name_of(number)
        if number < CLASSES:
            path.parent.mkdir()
        path.touch()
    return {"name": "folder", "path": str(folder)}


WRITERS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "list": write_list, "table": write_table, "shards": write_shards, "folder": write_folder,
}  # fmt: skip


def resident() -> float:
    """Resident memory of this process in MiB."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


def own(pid: int) -> float:
    """Memory of a process that no other shares, in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) / 1024


def measure(source: dict[str, Any]) -> dict[str, float]:
    """Figures of one source, in this process."""
    from mmmask.data.order import EndlessOrder
    from mmmask.data.process import guarded
    from mmmask.data.streams import Streams, built_source
    from mmmask.experiment import experiment_from_data
    from mmmask.interfaces import BadSample
    from mmmask.interfaces.component import build

    stream = {
        "modality": {"name": "image", "size": 224},
        "masker": "random",
        "loss": "pixels",
        "source": source,
        "batch_size": 4096,
    }
    experiment = experiment_from_data(
        {
            "streams": {"images": stream | {"source": source}},
            "model": {"encoder": {"name": "vit", "size": "tiny"}, "decoder": {"name": "transformer", "width": 32}},
            "training": {"steps": 1},
            "data": {"workers": 2, "process": True},
        }
    )
    settings = experiment.streams["images"]
    preparation = build("modality", settings.modality).preparation
    before, started = resident(), time.process_time()
    found = built_source(settings.source, preparation)
    figures = {"entries": len(found), "listing": time.process_time() - started, "kept": resident() - before}
    figures["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    del found
    gc.collect()
    started = time.process_time()
    streams = Streams(experiment)
    streams.state_dict()
    figures["start"] = time.process_time() - started
    order = EndlessOrder(len(streams.loaders["images"].source), 0, "images")
    order.draws(range(4096))  # warms up
    started = time.process_time()
    for batch in range(10):
        order.draws(range(batch * 4096, batch * 4096 + 4096))
    figures["order"] = (time.process_time() - started) / 10
    figures["pickled"] = len(pickle.dumps(streams.loaders)) / MIB
    started = time.perf_counter()
    with guarded(streams.loaders, experiment.data) as loaders:
        loader = loaders["images"]
        for number in range(LOOKED):
            with suppress(BadSample):
                loader.plain(random.Random(number).randrange(len(loader.source)))
            if not number:
                figures["workers"] = time.perf_counter() - started
        supervisor = loader.processes.pid  # pyright: ignore[reportAttributeAccessIssue] - guarded by processes
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
        figures["own"] = max(own(int(pid)) for pid in children)
    return figures


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=10_000_000, help="of the sources that need no files")
    parser.add_argument("--files", type=int, default=200_000, help="of the folder")
    parser.add_argument("--folder", help="where the data is made (default: the system's for temporary files)")
    parser.add_argument("--only", choices=sorted(WRITERS))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(json.loads(arguments.measure))))
        return
    print("| source | entries | listing | kept | peak | start | pickled | workers | own | order |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, write in WRITERS.items():
        if arguments.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            source = write(Path(folder), arguments.files if name == "folder" else arguments.entries)
            command = [sys.executable, __file__, "--measure", json.dumps(source)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        print(
            f"| `{name}` | {found['entries']:,} | {found['listing']:.1f} s | {found['kept']:.0f} MiB "
            f"| {found['peak']:.0f} MiB | {found['start']:.1f} s | {found['pickled']:.0f} MiB "
            f"| {found['workers']:.1f} s | {found['own']:.0f} MiB | {found['order'] * 1000:.1f} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()

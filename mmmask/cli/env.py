"""`mmmask env`."""

from __future__ import annotations

import argparse
import os

from mmmask.cli.arguments import add_plugin
from mmmask.components import components


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--plugin."""
    add_plugin(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prints versions, devices and plugins."""
    import torch

    from mmmask.training.folder import versions

    found = versions()
    plugins = found.pop("plugins")
    for name, version in found.items():
        print(f"{name}: {version}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"cpu: {cores} cores, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} torch threads")
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        print(f"cuda:{index}: {torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
    if not torch.cuda.is_available():
        print("cuda: not available")
    for name, version in plugins.items():
        print(f"plugin: {name} {version}".rstrip())
    if not plugins:
        print("plugins: none but mmmask's own")
    for plugin in components().broken:
        print(f"broken plugin: {plugin.name} ({plugin.supplier}): {plugin.reason}")

"""A plugin file: a folder of files, some of which crash, hang or eat memory when they are decoded, by their name."""

import ctypes
import time
from pathlib import Path

from pydantic import Field

import mmmask
from mmmask.interfaces import Source, SourceFile


class HazardousFolder(Source):
    """Every file of a folder; what their names say happens when they are loaded."""

    class Config(Source.Config):
        path: str = Field(description="the folder")

    def __init__(self, config, extensions=()):
        super().__init__(config, extensions)
        self.paths = sorted(Path(config.path).iterdir())

    def __len__(self):
        return len(self.paths)

    def load(self, index):
        match self.paths[index].stem:
            case "crash":
                ctypes.string_at(0)
            case "minute":
                time.sleep(60)
            case "memory":
                bytearray(10 << 30)
        return SourceFile(str(self.paths[index]))

    def describe(self, index):
        return self.paths[index].name


mmmask.register("source", "hazardous", HazardousFolder, "files that crash, hang and eat memory")

"""A plugin file whose source ends or fails its process at a sample; `ends_at` names it."""

import ctypes
import gc
import os
import signal
import time

import torch

import mmmask
from mmmask.interfaces import BadSample, Source
from mmmask_registry import MmmaskError


class Unpicklable(MmmaskError):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


class FatalSource(Source):
    """Noise, and a sample that ends its process."""

    class Config(Source.Config):
        how: str = "fine"
        at: int = 5
        count: int = 24
        file: str = ""

    def __len__(self):
        return self.config.count

    def load(self, index):
        if index == self.config.at:
            match self.config.how:
                case "segfault":
                    ctypes.string_at(0)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "exit":
                    os._exit(3)
                case "collect":
                    gc.collect()
                case "hang":
                    time.sleep(1000)
                case "memory":
                    bytearray(10 << 30)
                case "once" if not os.path.exists(self.config.file):
                    open(self.config.file, "x").close()
                    ctypes.string_at(0)
                case "own error":
                    raise Unpicklable("this", "that")
                case "bad":
                    raise BadSample("made to be bad")
                case "pid":
                    print(os.getpid(), flush=True)
        return torch.rand(2, 80, generator=torch.Generator().manual_seed(index))

    @property
    def classes(self):
        return {"label": ("a", "b")}

    def label(self, index):
        if self.config.how == "label error" and index == self.config.at:
            raise ZeroDivisionError("in the plugin")
        return "ab"[index % 2]


class LockedSource(FatalSource):
    """Holds what cannot be pickled."""

    def __init__(self, config, extensions=()):
        super().__init__(config, extensions)
        self.file = open(os.devnull)  # noqa: SIM115

    def __del__(self):
        self.file.close()


@mmmask.hookimpl
def register_components(register):
    register("source", "fatal", FatalSource, "ends its process")
    register("source", "locked", LockedSource, "cannot be pickled")

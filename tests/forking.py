"""Runs `python -m mmmask ...` in processes of its own, without importing torch anew for each.

As a module: the client. As a program: the server, which reads a JSON request a line. `{"start": arguments, ...}` forks:
the child is a process like any other, and can be killed like one. `{"wait": pid}` answers once it has ended. No thread
and no random draw precedes a fork.
"""

import gc
import importlib
import json
import os
import pkgutil
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
import warnings
from contextlib import suppress
from dataclasses import dataclass

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": ""}


@dataclass
class Ended:
    code: int
    out: str
    err: str


class Started:
    """A process under way."""

    def __init__(self, forker, pid, stdout, stderr):
        self.forker, self.pid, self.stdout, self.stderr = forker, pid, stdout, stderr

    def kill(self, number):
        os.kill(self.pid, number)

    def wait(self, seconds=60):
        """Its end; a process that hangs is ended by SIGABRT."""
        code = self.forker.ask({"wait": self.pid, "seconds": seconds})["code"]
        return Ended(code, *(path.read_text(errors="replace") for path in (self.stdout, self.stderr)))


class Forker:
    """The client."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-W", "error::DeprecationWarning", __file__],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | ENVIRONMENT, text=True,
        )  # fmt: skip

    def ask(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments, cwd=None, limits=(), output=None, errors=None, **environment):
        """Starts `mmmask` with these arguments; `limits` are (name in `resource`, value).

        What it prints goes to `output` and `errors`, such as a device or a named pipe, and is not read then.
        """
        self.count += 1
        stdout, stderr = (self.folder / f"{self.count}.{name}" for name in ("out", "err"))
        stdout.touch()
        stderr.touch()
        request = {
            "start": [str(argument) for argument in arguments], "cwd": str(cwd or self.folder),
            "stdout": str(output or stdout),
            "stderr": str(errors or stderr), "environment": {key: str(value) for key, value in environment.items()},
            "limits": list(limits),
        }  # fmt: skip
        return Started(self, self.ask(request)["pid"], stdout, stderr)

    def close(self):
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


def become(request):
    """Turns this process into `python -m mmmask` as asked for; ends it without the seconds of a tidy end."""
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        descriptor = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
    os.chdir(request["cwd"])
    for name, value in request["limits"]:
        resource.setrlimit(getattr(resource, name), (value, value))
    os.environ.update(request["environment"])
    # what Python looks at when it starts, which was long ago
    sys.stdout.reconfigure(encoding=os.environ.get("PYTHONIOENCODING"))
    # anew, since a file, which it may have been, can be sought in and a pipe cannot
    encoding = os.environ.get("PYTHONIOENCODING")
    sys.stderr = open(2, "w", 1, encoding, "backslashreplace", closefd=False)  # noqa: SIM115 - it stays open
    if action := os.environ.get("PYTHONWARNINGS"):
        warnings.simplefilter(action)
    sys.argv = ["mmmask", *request["start"]]
    try:
        runpy.run_module("mmmask", run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    with suppress(OSError):  # nor does Python's own end mind
        sys.stderr.flush()
    os._exit(code or 0)


def wait(pid, seconds):
    """Its exit code; a process that hangs is killed, which no test expects of it."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.01)


def serve():
    components = importlib.import_module("mmmask.components").components()
    for kind, registry in components.registries.items():
        for entry in registry:
            if entry.name != "parquet":  # pyarrow starts a thread
                components.get(kind, entry.name)
    cli = importlib.import_module("mmmask.cli")
    commands = [f"mmmask.cli.{module.name}" for module in pkgutil.iter_modules(cli.__path__)]
    for module in (*commands, "mmmask.training.train", "mmmask.training.sharding", "mmmask.interop.sharded",
                   "mmmask.evaluation.pictures", "PIL.PngImagePlugin", "PIL.GifImagePlugin", "PIL.JpegImagePlugin",
                   "torch.utils.tensorboard", "torch._dynamo"):  # fmt: skip
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                become(request)
            answer = {"pid": pid}
        else:
            answer = {"code": wait(request["wait"], request["seconds"])}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()

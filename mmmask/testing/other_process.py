"""A second Python whose strings hash otherwise: what depends on the order of a set comes out differently there.

It is started when it is first needed and serves all checks that follow; `python -m mmmask.testing.other_process` is it.
"""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO, TypeVar, cast

from mmmask.testing.check import NotApplicable, Unmet

Result = TypeVar("Result")


def elsewhere(component: type[Any], function: Callable[..., Result], *arguments: object) -> Result:
    """What a function of a module gives in the other process.

    Args:
        component: whose module the other process needs; a module that is a file and no package is taken by its file.

    Raises:
        NotApplicable: the component stands in no file, as in a notebook, or the file cannot be imported there.
        Unmet: the function raised an error there, and only there.
    """
    module = sys.modules.get(component.__module__)
    file = getattr(module, "__file__", None)
    if file is None or component.__module__ == "__main__":
        raise NotApplicable(f"{component.__name__} stands in no file that another process could import")
    process = _process()
    request = (list(sys.path), component.__module__, file, pickle.dumps((function, arguments)))
    pickle.dump(request, cast(BinaryIO, process.stdin))
    cast(BinaryIO, process.stdin).flush()
    outcome, result = pickle.load(cast(BinaryIO, process.stdout))
    if outcome == "not imported":
        raise NotApplicable(f"another process cannot import {component.__module__}: {result}")
    if outcome == "failed":
        raise Unmet("no error in another process", result)
    return result


@cache
def _process() -> subprocess.Popen[bytes]:
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    process = subprocess.Popen(
        [sys.executable, "-c", "from mmmask.testing.other_process import serve; serve()"],
        env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[bytes]) -> None:
    cast(BinaryIO, process.stdin).close()
    cast(BinaryIO, process.stdout).close()
    process.wait()


def serve() -> None:
    """Answers requests on the standard input until it is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what components print must not come between the answers
    while True:
        try:
            path, module, file, payload = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(_answer(path, module, file, payload), answers)
        answers.flush()


def _answer(path: list[str], module: str, file: str, payload: bytes) -> tuple[str, object]:
    sys.path[:] = path
    try:
        _import(module, file)
        function, arguments = pickle.loads(payload)
    except Exception as error:  # a plugin's module may raise anything at all
        return "not imported", f"{type(error).__name__}: {error}"
    try:
        return "done", function(*arguments)
    except Exception as error:  # and so may its component
        return "failed", f"{type(error).__name__}: {error}"


def _import(name: str, file: str) -> None:
    """By its name or, where nothing has that name here (a plugin file, a test's module), by its file."""
    if name in sys.modules:
        return
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)

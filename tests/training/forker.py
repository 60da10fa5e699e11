"""Runs `python -m mmmask ...` in processes of its own, without importing torch anew for each.

Reads a JSON request a line. `{"start": arguments, ...}` forks: the child is a process like any other, and can be killed
like one. `{"wait": pid}` answers once it has ended. No thread and no random draw precedes a fork.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
import traceback

for module in ("mmmask.cli.train", "mmmask.training.train", "mmmask.cli.progress", "mmmask.evaluation.pictures",
               "mmmask.builtins.pixels", "mmmask.builtins.vit", "mmmask.builtins.transformer_decoder",
               "mmmask.builtins.maskers", "mmmask.builtins.positions", "PIL.PngImagePlugin",
               "torch.utils.tensorboard", "torch._dynamo"):  # fmt: skip
    importlib.import_module(module)
gc.collect()
gc.freeze()  # a collection in a child would copy every page


def become(request):
    """Turns this process into `python -m mmmask` as asked for; ends it without the seconds of a tidy end."""
    for number, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        descriptor = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(descriptor, number)
    os.chdir(request["cwd"])
    os.environ.update(request["environment"])
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
    sys.stderr.flush()
    os._exit(code or 0)


def wait(pid, seconds=60):
    """Its exit code; a process that hangs is killed, which no test expects of it."""
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)
        time.sleep(0.01)


for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    if "start" in request:
        pid = os.fork()
        if pid == 0:
            become(request)
        answer = {"pid": pid}
    else:
        answer = {"code": wait(request["wait"])}
    print(json.dumps(answer), flush=True)

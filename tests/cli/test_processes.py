"""The command line as users start it: real processes, their exit codes, and what they do not import."""

import json
import os
import subprocess
import sys

import pytest


def run(*arguments, program=("-m", "mmmask"), **settings):
    return subprocess.run(
        [sys.executable, *program, *arguments], capture_output=True, text=True, check=False, **settings
    )


@pytest.mark.parametrize("arguments", [("list",), ("list", "masker"), ("--version",), ("lst",)])
def test_names_are_listed_without_torch(arguments):
    code = (
        "import json, sys\nfrom mmmask.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = run(*arguments, program=("-c", code))
    modules = set(json.loads(done.stderr.splitlines()[-1]))
    assert "mmmask.cli" in modules
    assert not modules & {"torch", "numpy", "pydantic", "PIL", "av", "rich"}


def test_a_mistake_is_one_line_and_exit_code_2():
    done = run("show", "quickstrat")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("mmmask: no experiment is named 'quickstrat'. Did you mean 'quickstart'?")


def test_a_plugin_file_with_a_mistake_is_one_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("import a_package_nobody_has\n")
    done = run("list", "--plugin", str(path))
    assert done.returncode == 2
    assert done.stderr == (
        f"mmmask: --plugin {path}: ModuleNotFoundError: No module named 'a_package_nobody_has'\n"
    )  # fmt: skip


def test_a_plugin_file_supplies_components_to_every_command(signals):
    done = run("list", "modality", "--plugin", signals.PLUGIN_FILE)
    assert done.returncode == 0
    assert f"modality  signal  {signals.PLUGIN_FILE}  two-channel signals\n" in done.stdout
    done = run("describe", "source", "waves", "--plugin", signals.PLUGIN_FILE)
    assert done.returncode == 0
    assert "  count: int, default 24\n" in done.stdout


def test_a_reader_that_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "mmmask", "list"], stdout=closed, stderr=subprocess.PIPE, text=True, check=False
        )
    assert "Traceback" not in done.stderr
    assert done.stderr == ""


def test_the_installed_command_is_the_module():
    script = os.path.join(os.path.dirname(sys.executable), "mmmask")
    if not os.path.exists(script):
        pytest.skip("mmmask is not installed as a command here")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, run("--version").stdout)

"""Third parties' distributions beside an installed mmmask: they work, theirs that cannot is named, types are checked.

The good one is in `third_party/acme-tides`, whole.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mmmask.components import INTERFACE_VERSION

pytest.importorskip("hatchling")
pytestmark = pytest.mark.slow
THIRD_PARTY = Path(__file__).parent / "third_party"
EXPERIMENT = THIRD_PARTY / "acme-tides" / "tides.yaml"

CLAIMS = """
from mmmask import hookimpl


@hookimpl
def register_components(register):
    register("masker", "{free}", "nobody:Nothing", "not to be seen")
    register("masker", "{taken}", "nobody:Nothing", "not to be seen")
"""
# distribution -> (name of its entry point, its module, what is said of it)
FAULTY = {
    "acme-broken": ("broken", "import a_module_that_nobody_has\n", "No module named 'a_module_that_nobody_has'"),
    "acme-shuffle": (
        "shuffle",
        CLAIMS.format(free="shuffle", taken="random"),
        "the masker 'random' is supplied by mmmask already, and acme-shuffle supplies it again",
    ),
    "acme-tides-again": (
        "tides",  # the entry point of acme-tides is called so, too
        CLAIMS.format(free="flood", taken="ebb"),
        "the masker 'ebb' is supplied by acme-tides already, and acme-tides-again supplies it again",
    ),
    "acme-future": (
        "future",
        f"MMMASK_INTERFACE = {INTERFACE_VERSION + 1}\n"
        + CLAIMS.format(free="future", taken="farther")
        + "\n\n@hookimpl\ndef a_hook_of_the_future(run):\n    pass\n",
        f"written for interface version {INTERFACE_VERSION + 1}, this mmmask has {INTERFACE_VERSION}: upgrade mmmask",
    ),
}


@pytest.fixture(scope="module")
def tides(build_wheels, tmp_path_factory):
    """The wheel of acme-tides."""
    folder = tmp_path_factory.mktemp("tides")
    shutil.copytree(THIRD_PARTY / "acme-tides", folder / "acme-tides")
    (wheel,) = build_wheels(folder, folder / "acme-tides")
    return wheel


@pytest.fixture(scope="module")
def environment(new_environment, wheel, tides):
    return new_environment(wheel, tides)


@pytest.fixture(scope="module")
def crowded(new_environment, build_wheels, wheel, tides, tmp_path_factory):
    """The same, and everything faulty beside it."""
    folder = tmp_path_factory.mktemp("faulty")
    for distribution, (name, code, _) in FAULTY.items():
        module = distribution.replace("-", "_")
        (folder / distribution).mkdir()
        (folder / distribution / f"{module}.py").write_text(code)
        made = (THIRD_PARTY / "acme-tides" / "pyproject.toml").read_text()
        made = made.replace('"acme-tides"', f'"{distribution}"').replace('tides = "acme_tides"', f'{name} = "{module}"')
        made = made.replace('packages = ["acme_tides"]', f'only-include = ["{module}.py"]')
        (folder / distribution / "pyproject.toml").write_text(made)
    faulty = build_wheels(folder, *(folder / distribution for distribution in FAULTY))
    return new_environment(wheel, tides, *faulty)


def listed(environment):
    """({(kind, name): (supplier, description)}, lines of complaint) of `mmmask list`."""
    ended = environment.run("mmmask", "list")
    assert ended.returncode == 0, ended.stderr
    rows = [re.split(r"  +", line, maxsplit=3) for line in ended.stdout.splitlines()]
    return {(kind, name): tuple(rest) for kind, name, *rest in rows}, ended.stderr.splitlines()


def test_a_third_party_is_listed_and_described(environment):
    where = environment.told("python", "-c", "import mmmask, acme_tides; print(mmmask.__file__, acme_tides.__file__)")
    expected = [environment.packages / package / "__init__.py" for package in ("mmmask", "acme_tides")]
    assert where.split() == [str(path) for path in expected], "not the checkout's"
    names, complaints = listed(environment)
    assert complaints == []
    assert {key: row for key, row in names.items() if row[0] == "acme-tides"} == {
        ("modality", "tide"): ("acme-tides", "the water at a gauge, hour by hour"),
        ("source", "tide_gauge"): ("acme-tides", "a gauge with two tides, from a formula"),
        ("masker", "ebb"): ("acme-tides", "masks the hours before a time of day"),
    }
    assert "share of the tokens that is masked" in environment.told("mmmask", "describe", "masker", "ebb")


def test_what_is_faulty_is_named_in_one_line_each_and_the_rest_is_there(crowded, environment):
    names, complaints = listed(crowded)
    assert len(complaints) == len(FAULTY), complaints
    for distribution, (name, _, reason) in FAULTY.items():
        (line,) = [line for line in complaints if f"({distribution})" in line]
        assert line.startswith(f"mmmask: plugin {name} ({distribution}) failed to load: ")
        assert reason in line
    assert names == listed(environment)[0], "of a plugin that is refused, no name is taken"
    reported = crowded.told("mmmask", "env")
    for distribution, (name, _, reason) in FAULTY.items():
        (line,) = [
            line for line in reported.splitlines() if line.startswith(f"broken plugin: {name} ({distribution}): ")
        ]
        assert reason in line


def test_a_third_party_trains_by_its_names_also_where_others_are_faulty(crowded):
    trained = crowded.told("mmmask", "train", EXPERIMENT, "--device", "cpu")
    assert "20 steps done" in trained
    first, last = re.findall(r"gauges: held-out loss ([\d.]+) at the start, ([\d.]+) at the end", trained)[0]
    assert float(last) < float(first)
    assert (crowded.here / "runs" / "tides" / "metrics.jsonl").is_file(), "in the folder where it was called"


def test_a_name_that_a_faulty_one_would_have_supplied_leads_to_it(crowded):
    ended = crowded.run("mmmask", "show", EXPERIMENT, "streams.gauges.masker.name=shuffle")
    assert ended.returncode != 0
    assert "no masker is named 'shuffle'" in ended.stderr
    assert f"plugin shuffle (acme-shuffle) failed to load: {FAULTY['acme-shuffle'][2]}" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module")
def findings(environment, tmp_path_factory):
    """{file: {(line, rule)}} of pyright, outside this checkout, with the environment's mmmask."""
    pyright = shutil.which("pyright")
    if not pyright or subprocess.run([pyright, "--version"], capture_output=True, timeout=120).returncode:
        pytest.skip("pyright is not installed")
    folder = tmp_path_factory.mktemp("types")
    shutil.copytree(THIRD_PARTY, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    # two modules that only the environment's packages have: found, if those are what pyright looks at
    (folder / "where.py").write_text("from mmmask.only_here import A\nfrom mmmask_registry.only_here import B\n")
    for package, name in ("mmmask", "A"), ("mmmask_registry", "B"):
        (environment.packages / package / "only_here.py").write_text(f"{name} = 1\n")
    # strict: also an error if a package has no py.typed, or a type of its interfaces is not known
    (folder / "pyrightconfig.json").write_text(json.dumps({"strict": ["acme-tides"]}))
    command = [pyright, "--pythonpath", str(environment.bin / "python"), "--outputjson", "--project", str(folder)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1, ended.stdout + ended.stderr  # errors were found, those of mistakes.py
    told = json.loads(ended.stdout)
    found = {path.relative_to(folder).as_posix(): {} for path in folder.rglob("*.py")}
    assert told["summary"]["filesAnalyzed"] == len(found) == 6
    for finding in told["generalDiagnostics"]:
        path = Path(finding["file"]).relative_to(folder).as_posix()
        found[path][finding["range"]["start"]["line"] + 1, finding.get("rule")] = finding["message"]
    return found


def test_a_third_partys_types_are_right(findings):
    assert findings["where.py"] == {}, "pyright does not look at the installed mmmask"
    found = {path: errors for path, errors in findings.items() if path.startswith("acme-tides/")}
    assert found == {f"acme-tides/acme_tides/{name}.py": {} for name in ("__init__", "modality", "source", "masker")}


def test_wrong_types_are_found(findings):
    lines = (THIRD_PARTY / "mistakes.py").read_text(encoding="utf-8").splitlines()
    marked = {(number, line.split("# ")[1]) for number, line in enumerate(lines, 1) if "# report" in line}
    assert len(marked) == 10
    assert set(findings["mistakes.py"]) == marked

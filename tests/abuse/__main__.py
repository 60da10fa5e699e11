"""Counts of all abuses by group and verdict: `python -m tests.abuse [GROUP ...] [--all]`."""

import argparse
import collections
import importlib
import tempfile
from pathlib import Path

from tests.abuse import harness
from tests.forking import Forker

HERE = Path(__file__).parent


def main() -> None:
    tables = [path for path in sorted(HERE.glob("test_*.py")) if "ABUSES = " in path.read_text()]
    groups = [path.stem.removeprefix("test_") for path in tables]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", help=f"of {', '.join(groups)}; all by default")
    parser.add_argument("--verbose", action="store_true", help="what was printed, also where it was handled")
    chosen = parser.parse_args()
    counts = {}
    with tempfile.TemporaryDirectory() as folder:
        forker = Forker(Path(folder))
        stage = harness.make_stage(Path(folder, "stage"), forker)
        for group in chosen.groups or groups:
            counts[group] = collections.Counter()
            for number, abuse in enumerate(importlib.import_module(f"tests.abuse.test_{group}").ABUSES):
                outcome = harness.examine(abuse, stage, Path(folder, group, str(number)), forker)
                counts[group][outcome.verdict] += 1
                if chosen.verbose or outcome.verdict != "handled":
                    print(outcome, flush=True)
        forker.close()
    columns = ("abuses", *harness.VERDICTS)
    print("| group | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for group, count in [*counts.items(), ("all", sum(counts.values(), collections.Counter()))]:
        print("|", " | ".join(map(str, [group, count.total(), *(count[verdict] for verdict in harness.VERDICTS)])), "|")


if __name__ == "__main__":
    main()

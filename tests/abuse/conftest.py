"""The workplace of all abuses, and the test of one row."""

import pytest

from tests.abuse import harness


@pytest.fixture(scope="session")
def stage(forker, tmp_path_factory):
    return harness.make_stage(tmp_path_factory.mktemp("stage") / "stage", forker)


@pytest.fixture
def examine(forker, stage, tmp_path):
    """Examines an abuse; anything but `handled` fails."""

    def examine(abuse):
        outcome = harness.examine(abuse, stage, tmp_path / "place", forker)
        assert outcome.verdict == "handled", str(outcome)

    return examine

"""Fuzz: a few hundred damaged inputs; `python -m tests.abuse.fuzz` reads many more."""

from tests.abuse import fuzz

INPUTS = 80


def test_damaged_inputs_are_decoded_or_refused():
    tallies = fuzz.fuzz(fuzz.KINDS, seed=0, rounds=[range(INPUTS)], workers=2, report=lambda tallies: None)
    assert all(not tally.found for tally in tallies.values()), fuzz.table(tallies)
    assert all(tally.verdicts["refused"] for tally in tallies.values()), fuzz.table(tallies)


def test_an_input_can_be_made_again(tmp_path):
    folders = tmp_path / "first", tmp_path / "second"
    for kind in ("images", "experiments"):
        first, second = (fuzz.loaders([kind], 7, folder)[kind].source.load(100)[0].read() for folder in folders)
        assert first == second

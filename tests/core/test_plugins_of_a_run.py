"""Installed plugins with their versions, and those that a run was trained with."""

import importlib.metadata
import json

import pytest

import mmmask
from mmmask.components import Components


class Distribution(importlib.metadata.Distribution):
    """An installed distribution with nothing in it."""

    def read_text(self, filename):
        return "Name: acme-averages\nVersion: 2.1\n" if filename == "METADATA" else None

    def locate_file(self, path):
        raise NotImplementedError


def test_a_distribution_of_hooks_alone_is_named_with_its_version(tmp_path, monkeypatch):
    (tmp_path / "acme_averages.py").write_text(
        "import mmmask\n\n@mmmask.hookimpl\ndef run_ended(run, outcome):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(importlib.metadata, "version", lambda name: {"acme-averages": "2.1"}[name])
    point = importlib.metadata.EntryPoint("averages", "acme_averages", "mmmask")._for(Distribution())
    assert Components([point]).plugins == {"acme-averages": "2.1"}
    assert Components([]).plugins == {}


def test_a_run_says_which_of_its_plugins_is_not_here(signals, tmp_path):
    experiment = mmmask.experiment.experiment_from_data(signals.signal_data())
    (tmp_path / "experiment.yaml").write_text(experiment.to_yaml().replace("name: signal", "name: acme_signal"))
    with pytest.raises(mmmask.MmmaskError, match="no modality is named 'acme_signal'") as without:
        mmmask.load_run(tmp_path)
    assert "plugins" not in str(without.value)
    (tmp_path / "versions.json").write_text(json.dumps({"plugins": {"acme-signals": "2.1", "theirs.py": ""}}))
    with pytest.raises(mmmask.MmmaskError) as with_versions:
        mmmask.load_run(tmp_path)
    assert str(with_versions.value).endswith(
        "the run was trained with plugins that are not here: acme-signals 2.1, theirs.py"
    )

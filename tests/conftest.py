"""One thread, no surprises of time in generated tests, and the test-only modality of `signals.py`."""

from pathlib import Path

import hypothesis
import pytest
import torch

from tests.forking import Forker

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True, print_blob=False)
hypothesis.settings.load_profile("tests")

SIGNALS = Path(__file__).with_name("signals.py")


@pytest.fixture(scope="session")
def signals():
    """The module tests/signals.py, taken once as the plugin file that it is; `signals.PLUGIN_FILE` is its path."""
    from mmmask.components import components

    return components().add_plugin_file(str(SIGNALS))


@pytest.fixture(scope="session")
def forker(tmp_path_factory):
    """Starts `mmmask` in processes of its own, quickly."""
    forker = Forker(tmp_path_factory.mktemp("forker"))
    yield forker
    forker.close()

"""The core without a single installed plugin: a modality that came as a file trains, resumes and reconstructs."""

import json
import os
import subprocess
import sys

WITHOUT_PLUGINS = """
import sys
import mmmask.components as module
bare = module.Components(entry_points=[])
module.components = lambda: bare
import json
from pathlib import Path
import mmmask
assert not bare.broken
assert not list(bare.registry("modality"))
bare.add_plugin_file(sys.argv[1])
assert [entry.name for entry in bare.registry("modality")] == ["signal"]
signals = sys.modules[bare.get("modality", "signal").__module__]
from mmmask.experiment import experiment_from_data
from mmmask.interop.runs import load_run
from mmmask.training.train import train
from mmmask.evaluation.pictures import pictures_of, reconstruct
import torch
torch.set_num_threads(1)

class Stop:
    def __init__(self, step):
        self.at = step
    @mmmask.hookimpl
    def step_ended(self, run, metrics):
        if metrics["step"] == self.at:
            raise KeyboardInterrupt

log = {"every": 1, "reconstruct_every": 0, "tensorboard": False}
experiment = experiment_from_data(signals.signal_data(steps=5, log=log))
whole = train(experiment, sys.argv[2] + "/whole")
try:
    train(experiment, sys.argv[2] + "/cut", plugins=(Stop(3),))
except KeyboardInterrupt:
    pass
cut = train(experiment, sys.argv[2] + "/cut")
timings = {"samples_per_second", "data_wait_seconds", "step_seconds"}
plain = lambda lines: [{k: v for k, v in line.items() if k not in timings} for line in lines]
assert plain(cut.metrics) == plain(whole.metrics)
assert len(cut.metrics) == 5
model = load_run(sys.argv[2] + "/cut").model
samples = torch.stack([torch.zeros(2, 64, dtype=torch.uint8)] * 2)
assert pictures_of(model, "long", reconstruct(model, "long", samples)).width > 64
loaded = {name.split(".")[0] for name in sys.modules}
print(json.dumps(sorted(name for name in loaded if name.startswith("mmmask"))))
"""


def test_a_modality_trains_resumes_and_reconstructs_without_plugins(signals, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_PLUGINS, signals.PLUGIN_FILE, str(tmp_path)],
        capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    loaded = json.loads(ended.stdout.splitlines()[-1])
    installed = [name for name in loaded if not name.startswith("mmmask_plugin_file")]
    assert installed == ["mmmask", "mmmask_registry"], "no plugin was imported"

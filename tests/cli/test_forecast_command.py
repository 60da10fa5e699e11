"""`mmmask check` for machines that are not there."""

import json
import math
import re
import subprocess
import sys

import pytest

from mmmask_registry import MmmaskError

GPUS = ("--nodes", "16", "--gpus", "8", "--gpu", "h200")


def test_a_run_on_machines_that_are_not_here():
    command = [sys.executable, "-m", "mmmask", "check", "omnimae/vit_base", *GPUS, "--price", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, memory, by_sharding, *rest = done.stdout.splitlines()
    assert first == "16 x 8 h200, sharding none: 8 images + 8 videos a step on each"
    assert memory.startswith("memory: 7.6 GiB of 141.0 GiB (weights 359 MiB, gradients 359 MiB, optimiser 719 MiB, ")
    assert by_sharding.startswith("memory by sharding: none 7.6 GiB fits, full ")
    assert "communication: all-reduce of gradients: each GPU sends 713 MiB, 0.00234 s" in rest
    assert "the percentages, and the time to launch an operator, are assumed: no GPU was measured" in rest
    assert rest[-1].startswith("500,000 steps: ")
    assert " hours, " in rest[-1]
    assert rest[-1].endswith(" at 2 a GPU-hour")


def test_epochs_need_the_size_of_the_source(cli, mistake):
    out = cli("check", "mae/vit_base", "--gpu", "a100", "--gpus", "8").out
    assert "hours: not known: streams.images.source: " in out
    assert out.endswith("; give --samples images=N\n")
    out = cli("check", "mae/vit_base", "--gpu", "a100", "--gpus", "8", "--samples", "images=1281167").out
    assert "\n500,456 steps: " in out
    assert mistake("check", "mae/vit_base", "--gpu", "a100", "--samples", "images=many") == (
        "--samples images=many: expected a number above zero, such as images=1000"
    )
    assert mistake("check", "mae/vit_base", "--gpu", "a100", "--decode", "x=1").startswith("no stream is named 'x'.")


def test_classes_are_assumed_where_no_source_tells(cli):
    done = cli("check", "mae/finetune_vit_base", "--gpu", "a100", "--gpus", "8")
    assert done.out.startswith("1000 classes are assumed, as streams.images.source: ")
    told = cli("check", "omnimae/finetune_places365", "--gpu", "a100", "--gpus", "8").out
    assert told.startswith("365 classes are assumed, as streams.images.source: ")
    sets = cli("check", "omnimae/finetune_epic100", "--gpu", "a100", "--gpus", "8").out
    assert sets.startswith("97 classes of verb, 300 classes of noun are assumed, as streams.videos.source: ")


def test_other_mistakes_are_not_taken_for_a_source_that_is_missing(cli, monkeypatch):
    def refuse(experiment):
        raise MmmaskError("no key to this store")

    monkeypatch.setattr("mmmask.data.streams.classes_of", refuse)
    done = cli("check", "mae/finetune_vit_base", "--gpu", "a100")
    assert (done.code, done.out, done.err) == (2, "", "mmmask: no key to this store\n")


def test_streams_that_take_turns(cli):
    out = cli("check", "omnimae/vit_base", "training.mixing=alternate", "--gpu", "a100", "--nodes", "16").out
    first, *_, step, whole = out.splitlines()
    assert first.endswith(": 64 images or 64 videos a step on each")
    seconds, rate = (float(word.split()[0].replace(",", "")) for word in step.removeprefix("a step: ").split(" s, "))
    assert rate * seconds == pytest.approx(16 * 64, rel=0.01)


def test_epochs_with_the_batch_sizes_of_the_budget(cli, signals, tmp_path):
    data = signals.signal_data(mixing="budget", epochs={"long": 10})
    del data["training"]["steps"]
    data["streams"]["long"]["sampling_weight"] = 3.0
    (tmp_path / "signals.yaml").write_text(json.dumps(data))
    words = ("check", tmp_path / "signals.yaml", "--plugin", signals.PLUGIN_FILE, "--gpu", "h100")
    first, *_, last = cli(*words, "--samples", "long=9000").out.splitlines()
    size = int(re.search(r"(\d+) long", first)[1])
    assert size != data["streams"]["long"]["batch_size"]
    steps, rest = last.split(" steps: ")
    assert int(steps.replace(",", "")) == math.ceil(10 * 9000 / size)
    assert " minutes, " in rest


def test_a_cpu_in_fp16(mistake):
    assert mistake("check", "quickstart", "--gpu", "cpu", "training.precision=fp16") == (
        "--gpu cpu: fp16 was never measured on a CPU: take bf16 or fp32"
    )


@pytest.mark.parametrize("words", [("--nodes", 2), ("--price", 2), ("--samples", "images=9"), ("--decode", "images=9")])
def test_machines_need_a_name(mistake, words):
    needed = "--gpu: required with --nodes, --gpus, --price, --samples and --decode; one of a100-40, "
    assert mistake("check", "quickstart", *words).startswith(needed)


@pytest.mark.parametrize("words", [("--pictures", "drawn"), ("--verbose",), ("--device", "cpu")])
def test_options_of_a_trial_are_none_of_a_forecast(mistake, words):
    assert mistake("check", "quickstart", "--gpu", "h100", *words).startswith(f"{words[0]}: not with a forecast")


@pytest.mark.parametrize("price", ["0", "-1", "nan", "inf", "much"])
def test_a_price_is_above_zero(cli, price):
    done = cli("check", "quickstart", "--gpu", "h100", f"--price={price}")
    assert done.code == 2
    assert done.err.endswith(f"argument --price: '{price}': expected a number above zero\n")


def test_the_giant_fits_where_it_is_sharded(cli):
    giant = ("videomaev2/vit_giant", "streams.videos.batch_size=2816", "--nodes", 4, "--gpus", 8, "--gpu", "h100")
    out = cli("check", *giant, "training.sharding=full").out
    assert out.startswith(
        "4 x 8 h100, sharding full: 88 videos a step on each\nmemory: 65.0 GiB of 80.0 GiB (weights 122 MiB,"
    )
    assert "memory by sharding: none 81.5 GiB does not fit, full 65.0 GiB fits, node 66.5 GiB fits\n" in out
    assert "it does not fit" not in out
    advice = "\nit does not fit: take training.sharding=full, training.accumulate, or "
    assert advice in cli("check", *giant, "training.sharding=none").out
    assert "memory while evaluation and pictures gather all weights: at least 4.3 GiB\n" in out
    assert "communication: reduce-scatter of gradients: each GPU sends 3.7 GiB, " in out

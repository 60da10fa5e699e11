"""`mmmask check` for machines that are not there."""

import subprocess
import sys

GPUS = ("--nodes", "16", "--gpus", "8", "--gpu", "h200")


def test_a_run_on_machines_that_are_not_here():
    command = [sys.executable, "-m", "mmmask", "check", "omnimae/vit_base", *GPUS, "--price", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, memory, by_sharding, *rest = done.stdout.splitlines()
    assert first == "16 x 8 h200, sharding none: 8 images + 8 videos a step on each"
    assert memory.startswith("memory: 7.6 GiB of 141.0 GiB (weights 359 MiB, gradients 359 MiB, optimiser 719 MiB, ")
    assert by_sharding.startswith("memory by sharding: none 7.6 GiB fits, node ")
    assert "communication: all-reduce of gradients: 713 MiB sent by each, 0.00234 s" in rest
    assert rest[-1].startswith("500,000 steps: ")
    assert rest[-1].endswith(" at 2 each")


def test_epochs_need_the_size_of_the_source(cli, mistake):
    out = cli("check", "mae/vit_base", "--gpu", "a100", "--gpus", "8").out
    assert "hours: not known: streams.images.source: " in out
    assert out.endswith("; give --samples images=N\n")
    out = cli("check", "mae/vit_base", "--gpu", "a100", "--gpus", "8", "--samples", "images=1281167").out
    assert "\n500,456 steps: " in out
    assert mistake("check", "mae/vit_base", "--gpu", "a100", "--samples", "images=many") == (
        "--samples images=many: expected a number above 0, such as images=1000"
    )
    assert mistake("check", "mae/vit_base", "--gpu", "a100", "--decode", "x=1").startswith("no stream is named 'x'.")


def test_classes_are_assumed_where_no_source_tells(cli):
    done = cli("check", "mae/finetune_vit_base", "--gpu", "a100", "--gpus", "8")
    assert done.out.startswith("1000 classes are assumed, as streams.images.source: ")


def test_machines_need_a_name(mistake):
    assert mistake("check", "quickstart", "--nodes", "2").startswith("--gpu: required with --nodes and --gpus; one of ")


def test_the_giant_fits_where_it_is_sharded(cli):
    giant = ("videomaev2/vit_giant", "streams.videos.batch_size=2816", "--nodes", 4, "--gpus", 8, "--gpu", "h100")
    out = cli("check", *giant, "training.sharding=full").out
    assert out.startswith(
        "4 x 8 h100, sharding full: 88 videos a step on each\nmemory: 65.0 GiB of 80.0 GiB (weights 122 MiB,"
    )
    assert "memory by sharding: none 81.5 GiB does not fit, node 66.5 GiB fits, full 65.0 GiB fits\n" in out
    assert "communication: reduce-scatter of gradients: 3.7 GiB sent by each, " in out

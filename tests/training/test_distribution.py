"""Several processes train on the same samples as one; gloo on the CPU."""

import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("mixing", ["joint", "alternate"])
@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_train_as_one(reference, experiment_file, mixing, workers):
    file = experiment_file(mixing)
    reference(file).near(reference(file, f"data.workers={workers}", processes=2))


def test_with_heads_and_decoders_of_their_own(reference, experiment_file):
    """With `alternate` mixing a step then leaves parameters without gradient."""
    file = experiment_file("alternate")
    own = ("streams.short.head=short", "streams.short.decoder=short", "streams.long.modality.patch=8")
    reference(file, *own).near(reference(file, *own, processes=2))


@pytest.mark.parametrize("mixing", ["joint", "alternate"])
def test_a_parameter_may_have_its_first_gradient_later(reference, experiment_file, mixing):
    late = ("streams.long.loss.name=late", "--plugin", os.path.join(os.path.dirname(__file__), "late_loss.py"))
    one, two = (reference(experiment_file(mixing), *late, processes=number) for number in (1, 2))
    assert abs(one.state["model"]["objectives.masked.learned_losses.long.scale"]) > 1e-3
    one.near(two)


def test_micro_batches_and_processes_are_one_partition(reference, experiment_file):
    """Four micro-batches on one process see the masks and samples of two on each of two."""
    file = experiment_file()
    one = reference(file, "training.accumulate=4")
    one.near(reference(file, processes=2))
    for line in one.metrics:
        assert line["samples"] == 16 * line["step"]
        assert line["distinct_samples"] == 12 * line["step"]


def test_counts_that_vary_are_those_of_the_whole_batch(reference, experiment_file):
    """With dual masking one sample has more counted predictions than another."""
    file = experiment_file()
    dual = ("streams.long.decoder_masker={name: random, mask_ratio: 0.5}", "streams.long.loss_weight=2.0")
    one = reference(file, *dual, "training.accumulate=1")
    one.near(reference(file, *dual, "training.accumulate=4"))
    one.near(reference(file, *dual, processes=2))


def test_parts_of_one_sample(reference, experiment_file):
    """Each sample shows another number of a part's tokens, and one target averages over samples."""
    file, loss = experiment_file(), "loss: {name: pixels, normalize: none}"
    parts = (
        "streams.long.modality=null",
        "streams.long.modalities={fine: {name: signal}, coarse: {name: signal, patch: 8}}",
        "streams.long.masker={name: budget, mask_ratio: 0.75}",
        "streams.long.loss=null",
        f"streams.long.targets={{fine: {{{loss}}}, coarse: {{{loss}, average: samples}}}}",
    )
    one = reference(file, *parts)
    coarse = [line["coarse/loss"] for line in one.evaluations if line["stream"] == "long"]
    assert coarse[-1] < coarse[0]
    one.near(reference(file, *parts, "training.accumulate=4"))
    one.near(reference(file, *parts, processes=2))


def test_several_objectives_of_parts(reference, experiment_file):
    """Masked parts and, of the same samples, parts that are compared with those of all processes."""
    loss = "loss: {name: pixels, normalize: none}"
    masked = f"masker: {{name: budget, mask_ratio: 0.75}}, targets: {{fine: {{{loss}}}, coarse: {{{loss}}}}}"
    contrastive = "weight: 0.1, hidden_dim: 24, output_dim: 8"
    parts = (
        "streams.long.modality=null",
        "streams.long.masker=null",
        "streams.long.loss=null",
        "streams.long.modalities={fine: {name: signal}, coarse: {name: signal, patch: 8}}",
        f"streams.long.objectives={{masked: {{{masked}}}, contrastive: {{{contrastive}}}}}",
        "training.accumulate=1",
        "model.encoder.qkv_bias=query_value",
    )
    one = reference(experiment_file(), *parts)
    assert one.metrics[0].keys() > {"loss/long/contrastive", "loss/long/fine", "loss/long/coarse"}
    one.near(reference(experiment_file(), *parts, processes=2))


def test_a_masker_learns_as_in_one_process(reference, experiment_file):
    learns = "streams.long.masker={name: learned, mask_ratio: 0.75}"
    one = reference(experiment_file(), learns)
    weights = one.state["model"]["objectives.masked.learned_maskers.long.mlp.2.weight"]
    assert weights.abs().max() > 1e-3
    one.near(reference(experiment_file(), learns, processes=2))


def test_views_are_compared_with_those_of_all_processes(reference, experiment_file):
    file = experiment_file(contrast=True, accumulate=1)
    # biases of keys have no gradient but rounding errors, which Adam makes steps of
    biases = "model.encoder.qkv_bias=query_value"
    one = reference(file, biases)
    one.near(reference(file, biases, processes=2))
    # micro-batches are not compared with each other, so that this is another loss
    other = reference(file, biases, "training.accumulate=2")
    assert abs(one.metrics[0]["loss/long"] - other.metrics[0]["loss/long"]) > 0.1


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 2)])
def test_goes_on_with_another_number_of_processes(train, left, reference, experiment_file, tmp_path, before, after):
    file = experiment_file()
    ended = train(file, tmp_path / "run", moment="sigint:5", processes=before)
    for process in ended if before > 1 else [ended]:
        assert process.code in (0, 130), process.err
    ended = train(file, tmp_path / "run", processes=after)
    for process in ended if after > 1 else [ended]:
        assert process.code == 0, process.err
    run = left(tmp_path / "run")
    reference(file).near(run)
    if before == after == 2:
        run.same_as(reference(file, processes=2))


def test_a_killed_run_of_two_processes_goes_on_exactly(train, left, reference, experiment_file, tmp_path):
    file = experiment_file("alternate")
    for moment in ("half_checkpoint:2", "metrics:7"):
        main, other = train(file, tmp_path / "run", moment=moment, processes=2)
        assert main.code == -signal.SIGKILL
        assert other.code == 2
        assert "another process has ended" in other.err
        assert "Traceback" not in other.err
    for process in train(file, tmp_path / "run", processes=2):
        assert process.code == 0, process.err
    left(tmp_path / "run").same_as(reference(file, processes=2))


@pytest.mark.parametrize("lag", [2, 1000])
def test_checkpoints_that_another_process_sees_late(train, left, reference, experiment_file, tmp_path, lag):
    """A lag as of a network file system; a folder that is not shared at all is an error."""
    file = experiment_file()
    train(file, tmp_path / "run", moment="sigint:5", processes=2)
    ended = train(file, tmp_path / "run", moment=f"lag:{lag}", processes=2)
    if lag < 5:
        assert [process.code for process in ended] == [0, 0], ended
        left(tmp_path / "run").same_as(reference(file, processes=2))
    else:
        for process in ended:
            assert process.code == 2, process.err
            assert "the processes do not see the same checkpoints; is the folder shared?" in process.err


def test_a_sharded_checkpoint_whose_files_another_process_sees_late(train, experiment_file, tmp_path):
    file = experiment_file(sharding="full")
    train(file, tmp_path / "run", moment="sigint:5", processes=2)
    ended = train(file, tmp_path / "run", moment="lag_shards:2", processes=2)
    assert [process.code for process in ended] == [0, 0], ended
    assert "is damaged" not in ended[1].err


def test_a_disk_that_fills_up_ends_all_and_they_go_on_when_there_is_room(
    train, left, reference, experiment_file, tmp_path
):
    file = experiment_file()
    main, other = train(file, tmp_path / "run", moment="full_disk:4", processes=2)
    assert (main.code, other.code) == (2, 2), (main.err, other.err)
    assert "step_00000006.pt: cannot be written: File too large" in main.err
    assert f"The last good checkpoint is {tmp_path / 'run/checkpoints/step_00000003.pt'}" in main.err
    assert "another process has ended" in other.err
    assert "Traceback" not in main.err + other.err
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert [process.code for process in train(file, tmp_path / "run", processes=2)] == [0, 0]
    left(tmp_path / "run").same_as(reference(file, processes=2))


def test_a_batch_that_does_not_divide_is_an_error(train, experiment_file, tmp_path):
    ended = train(experiment_file(), tmp_path / "run", "streams.short.batch_size=6", processes=2)
    for process in ended:
        assert process.code == 2
        assert "Traceback" not in process.err
        assert "streams.short.batch_size: 6 does not divide by processes x accumulate x replicate (2 x 2 x 1)" in (
            process.err
        )


def test_too_many_bad_samples_stop_all_processes(train, experiment_file, tmp_path):
    """Each process judges alike, also after a resume, when earlier bad samples are known from the file only."""
    file = experiment_file()
    train(file, tmp_path / "run", moment="sigint:3", processes=2)  # the fourth bad sample is drawn in step 5
    ended = train(file, tmp_path / "run", "data.max_bad_share=0.13", processes=2)
    for process in ended:
        assert process.code == 2, process.err
        assert "4 of 24 samples could not be decoded" in process.err
        assert "Traceback" not in process.err


def test_an_error_of_the_main_process_ends_all(train, experiment_file, tmp_path):
    """Only the main process looks at the run's folder."""
    file = experiment_file()
    train(file, tmp_path / "run", moment="sigint:2", processes=2)
    ended = train(file, tmp_path / "run", "training.seed=5", processes=2)
    for process in ended:
        assert process.code == 2, process.err
        assert "Traceback" not in process.err
    assert "training.seed: 0 in the run, now 5" in ended[0].err


def test_a_loss_that_is_no_number_stops_all_processes(train, experiment_file, tmp_path):
    ended = train(experiment_file(), tmp_path / "run", "streams.short.source.huge_at=3", processes=2)
    for process in ended:
        assert process.code == 2, process.err
        assert "the loss is not finite (short: nan)" in process.err
        assert "Traceback" not in process.err


def test_one_device_for_several_processes_is_refused(monkeypatch):
    from mmmask.model.processes import processes
    from mmmask_registry import MmmaskError

    monkeypatch.setenv("WORLD_SIZE", "2")
    message = "^--device cuda:0: all 2 processes would share it; give --device cuda"
    with pytest.raises(MmmaskError, match=message), processes("cuda:0"):
        pass


@pytest.mark.slow
def test_torchrun(left, reference, experiment_file, signals, tmp_path):
    """`torchrun -m mmmask train ...` itself, stopped with Ctrl-C and by a closed terminal, each time started again."""
    file, output = experiment_file("alternate"), tmp_path / "run"
    moments = os.path.join(os.path.dirname(__file__), "moments.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mmmask"]
    command += ["train", file, "--output", output, "--plugin", signals.PLUGIN_FILE, "--plugin", moments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    metrics = output / "metrics.jsonl"

    def steps():
        return metrics.read_text().count("\n") if metrics.exists() else 0

    for number in (signal.SIGINT, signal.SIGHUP):
        before = steps()
        process = subprocess.Popen(
            command, env=environment | {"TEST_MOMENT": "slow:1"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 90
        while steps() <= before:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=90)
        assert "the same command goes on from there" in out, err
        assert before < steps() < 8
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 0, ended.stderr
    left(output).same_as(reference(file, processes=2))
    assert "arning" not in ended.stderr

"""Losses that are no numbers, and samples that cannot be decoded."""

import json
import re
from pathlib import Path

import pytest
import torch

from mmmask.data.samples import ATTEMPTS, SampleLoader, TooManyBad
from mmmask.experiment.compose import dump_yaml
from mmmask.interfaces import BadSample, TokenSpec
from mmmask.interfaces.source import SourceError
from mmmask_registry import MmmaskError

SPEC = TokenSpec((4,), 2)


@pytest.fixture
def write(signals, tmp_path):
    def write(long, **data):
        experiment = signals.signal_data(log={"every": 1, "reconstruct_every": 0, "tensorboard": False})
        experiment["streams"]["long"]["source"] |= long
        experiment["data"] |= data
        path = tmp_path / "signals.yaml"
        path.write_text(dump_yaml(experiment))
        return path

    return write


def position_of(index, epoch=0):
    from mmmask.data.order import EndlessOrder

    order = EndlessOrder(24, 0, "long")
    return 24 * epoch + order.draws(range(24 * epoch, 24 * epoch + 24)).index((epoch, index))


def sample_at(step):
    """A sample that is met first at a step (from 1) of 8 samples."""
    from mmmask.data.order import EndlessOrder

    ((_, index),) = EndlessOrder(24, 0, "long").draws(range(8 * (step - 1), 8 * (step - 1) + 1))
    return index


def test_a_loss_that_is_no_number_stops_the_run(train, write, tmp_path):
    file = write({"huge_at": sample_at(3)})
    ended = train(file, tmp_path / "run")
    assert ended.code == 2
    assert "step 3: the loss is not finite (long: nan)" in ended.err
    assert "step_00000002.pt" in ended.err
    assert "Traceback" not in ended.err
    (kept,) = (tmp_path / "run/checkpoints").iterdir()
    state = torch.load(kept, weights_only=True)
    assert state["step"] == 2
    assert all(value.isfinite().all() for value in state["model"].values())
    again = train(file, tmp_path / "run")  # meets it again, from the last good checkpoint
    assert again.code == 2
    assert "going on from step 2" in again.err
    assert "step 3: the loss is not finite" in again.err


def test_before_the_first_checkpoint_the_message_says_so(train, write, tmp_path):
    ended = train(write({"huge_at": sample_at(1)}), tmp_path / "run")
    assert ended.code == 2
    assert "step 1: the loss is not finite (long: nan). There is no checkpoint yet" in ended.err
    assert not (tmp_path / "run/checkpoints").exists()


def test_weights_that_are_no_numbers_are_not_saved(train, write, tmp_path):
    """A gradient can overflow in a step whose loss was still finite; the checkpoint after it must not be poisoned."""
    plugin = tmp_path / "poison.py"
    plugin.write_text(
        "import mmmask\n"
        "@mmmask.hookimpl\n"
        "def step_ended(run, metrics):\n"
        "    if metrics['step'] == 4:\n"
        "        run.model.encoder.norm.weight.data[0] = float('inf')\n"
    )
    file = write({})
    ended = train(file, tmp_path / "run", "--plugin", plugin)
    assert ended.code == 2
    assert "step 4" in ended.err
    assert "encoder.norm.weight" in ended.err
    assert "step_00000002.pt" in ended.err
    assert "Traceback" not in ended.err
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000002.pt"]
    assert train(file, tmp_path / "run").code == 0


def test_bad_samples_are_skipped_counted_and_written_down_once(train, left, write, tmp_path):
    file = write({"bad": [2, 7]}, max_bad_share=0.2)
    ended = train(file, tmp_path / "run", "training.steps=12")  # four epochs
    assert ended.code == 0, ended.err
    run = left(tmp_path / "run")
    lines = {line["sample"]: line for line in run.bad_samples}
    assert sorted(lines) == ["sample 2", "sample 7"]
    assert len(run.bad_samples) == 2, "once per sample"
    for index in (2, 7):
        line = lines[f"sample {index}"]
        step = position_of(index) // 8 + 1
        assert line == {"step": step, "stream": "long", "sample": f"sample {index}", "reason": "made to be bad"}
    counts = [line["bad_samples"] for line in run.metrics]
    assert counts == sorted(counts)
    assert counts[-1] >= 2 * 4, "each met at least once an epoch"
    assert run.state["bad_samples"]["failed"] == {"long": counts[-1], "short": 0}


def test_too_many_bad_samples_stop_the_run(train, write, tmp_path):
    ended = train(write({"bad": [1, 2, 3]}, max_bad_share=0.1), tmp_path / "run")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "streams.long.source: 3 of 24 samples could not be decoded" in ended.err
    assert "made to be bad" in ended.err
    assert "data.max_bad_share = 0.1" in ended.err


@pytest.mark.parametrize("workers", [0, 2])
def test_with_all_samples_bad_the_run_says_so(train, write, tmp_path, workers):
    file = write({"bad": list(range(24))}, max_bad_share=1.0, workers=workers)
    ended = train(file, tmp_path / "run")
    assert ended.code == 2
    assert "Traceback" not in ended.err
    assert "streams.long.source: 20 samples in a row could not be decoded" in ended.err
    assert "made to be bad" in ended.err


def test_an_empty_source_is_an_error(train, write, tmp_path):
    ended = train(write({"count": 0}), tmp_path / "run")
    assert ended.code == 2
    assert "streams.long.source: there is not a single sample" in ended.err


def test_a_bad_sample_is_replaced_by_another_and_never_by_nothing(signals):
    """The replacement is a real sample of the source, the same on every run."""
    config = signals.WaveSource.Config(name="waves", bad=(5,))
    source, preparation = signals.WaveSource(config), signals.SignalPreparation(80)
    loader = SampleLoader(source, preparation, SPEC, 1, 0, "long")
    seen = [loader.batch([(epoch, 5)]) for epoch in range(20)]
    whole = {tuple(source.load(index).flatten().tolist()): index for index in range(24) if index != 5}
    chosen = [whole[tuple(batch.batch.content.flatten().tolist())] for batch in seen]
    assert len(set(chosen)) > 5, "another in every epoch"
    again = SampleLoader(source, preparation, SPEC, 1, 0, "long")
    assert all(torch.equal(again.batch([(epoch, 5)]).batch.content, seen[epoch].batch.content) for epoch in range(20))
    assert all(batch.bad[0].sample == "sample 5" and len(batch.batch) == 1 for batch in seen)


def test_giving_up_names_the_last_sample_tried_and_keeps_the_records(signals):
    tried = []

    class Broken(signals.WaveSource):
        def load(self, index):
            tried.append(index)
            return super().load(index)

    source = Broken(Broken.Config(name="waves", bad=tuple(range(24))))
    loader = SampleLoader(source, signals.SignalPreparation(80), SPEC, 1, 0, "long")
    with pytest.raises(TooManyBad, match=r"the last: sample \d+: made to be bad") as raised:
        loader.batch([(0, 5)])
    assert isinstance(raised.value, SourceError)
    assert {record.stream for record in raised.value.records} == {"long"}
    assert [record.sample for record in raised.value.records] == [f"sample {index}" for index in tried]
    assert len(tried) == ATTEMPTS
    assert f"the last: sample {tried[-1]}: " in str(raised.value)


def line_with(text):
    """Number of the line of this file that holds a text."""
    return next(n for n, line in enumerate(Path(__file__).read_text().splitlines(), 1) if text in line)


def failing(signals, **errors):
    """A loader of samples whose `load`, `decode` or `prepare` raises."""

    def fail(method, name):
        def called(self, *arguments):
            if name in errors:
                raise errors[name]
            return method(self, *arguments)

        return called

    kind = signals.WaveSource
    source = type("Source", (kind,), {"load": fail(kind.load, "load")})(kind.Config(name="waves"))
    kind = signals.SignalPreparation
    methods = {name: fail(getattr(kind, name), name) for name in ("decode", "prepare")}
    return SampleLoader(source, type("Preparation", (kind,), methods)(80), SPEC, 2, 0, "long")


@pytest.mark.parametrize("where", ["load", "decode", "prepare"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError:"),
        (RecursionError("too\n deep"), "RecursionError: too deep"),
        (IndexError("x" * 5000), "IndexError: x{380}"),
        (OSError(5, "broken"), r"OSError: \[Errno 5\] broken"),
        (Exception("bare"), "Exception: bare"),
    ],
)
def test_any_error_makes_a_bad_sample_that_says_where(signals, where, error, reason):
    loader = failing(signals, **{where: error})
    expected = rf"{reason}x* \({re.escape(__file__)}:{line_with('raise errors[' + 'name]')}\)$"
    with pytest.raises(BadSample, match=expected):
        loader.plain(0)
    with pytest.raises(TooManyBad, match=f"sample \\d+: {expected}"):
        loader.batch([(0, 5)])


@pytest.mark.parametrize("where", ["load", "decode", "prepare"])
@pytest.mark.parametrize("error", [MmmaskError("for the user"), KeyboardInterrupt(), SystemExit(3)])
def test_errors_for_the_user_and_interrupts_are_no_bad_samples(signals, where, error):
    with pytest.raises(type(error)) as raised:
        failing(signals, **{where: error}).batch([(0, 5)])
    assert raised.value is error


def test_an_error_within_a_library_names_the_line_that_called_it(signals):
    import torch

    class Preparation(signals.SignalPreparation):
        def prepare(self, decoded, view):
            return torch.nn.functional.interpolate(decoded, size="large")  # raises within torch

    source = signals.WaveSource(signals.WaveSource.Config(name="waves"))
    line = line_with("raises within " + "torch")
    with pytest.raises(TooManyBad, match=rf"\({re.escape(__file__)}:{line}\)$"):
        SampleLoader(source, Preparation(80), SPEC, 1, 0, "long").batch([(0, 5)])


def test_bad_held_out_samples_are_written_down_once(train, left, write, tmp_path):
    file = write({}, max_bad_share=0.0)
    held_out = "streams.long.held_out={name: waves, count: 6, bad: [1, 4]}"
    for steps in (2, 4):
        ended = train(file, tmp_path / "run", held_out, f"training.steps={steps}")
        assert ended.code == 0, ended.err
        assert left(tmp_path / "run").bad_samples == [
            {"step": 0, "stream": "long.held_out", "sample": f"sample {index}", "reason": "made to be bad"}
            for index in (1, 4)
        ]


EVALUATOR = """
import mmmask


class Failing(mmmask.Evaluator):
    \"\"\"Fails at its second time.\"\"\"

    times = 0

    def add(self, batch, first, size):
        Failing.times += 1
        if Failing.times == 2:
            raise ValueError("made to fail")

    def figures(self):
        return {"times": 1.0}


@mmmask.hookimpl
def register_components(register):
    register("evaluator", "failing", Failing)
"""


def test_where_figures_fail_no_step_is_lost(train, write, tmp_path):
    (tmp_path / "failing.py").write_text(EVALUATOR)
    more = ["streams.long.evaluators=[failing]", "training.checkpoint.every=99", "training.evaluate.every=3"]
    more += ["training.steps=5", "--plugin", tmp_path / "failing.py"]
    ended = train(write({}), tmp_path / "run", *more)
    assert "made to fail" in ended.err
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step_00000003.pt"]
    ended = train(write({}), tmp_path / "run", *more)  # which fails at its second time again: that of step 5
    assert "going on from step 3" in ended.err
    assert (tmp_path / "run/checkpoints/step_00000005.pt").exists()
    assert train(write({}), tmp_path / "run", *more).code == 0
    lines = [json.loads(line) for line in (tmp_path / "run/evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["stream"] == "long"] == [0, 3, 5]

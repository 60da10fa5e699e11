"""The command line in this process: what each command says, and a line for each mistake."""

import re
from dataclasses import replace

import pytest
import torch
from PIL import Image

import mmmask
from mmmask.cli import COMMANDS
from mmmask.cli.progress import held_out_figures
from mmmask.components import components
from mmmask.experiment import experiment_from_data, load_experiment
from mmmask.experiment.compose import parse_yaml, published_experiments
from mmmask.interfaces import Loss, Source
from mmmask.interop.published import published
from mmmask_samples import audio, films, images, text, videos

SMALL = (
    "model.encoder.width=16", "model.encoder.depth=1", "model.encoder.num_heads=2", "model.decoder.width=16",
    "model.decoder.depth=1", "model.decoder.num_heads=2", "data.workers=0",
)  # fmt: skip
EVERY_COMPONENT = [
    (kind, entry.name)
    for kind, registry in components().registries.items()
    for entry in registry
    if entry.supplier == "mmmask"
]


@pytest.fixture
def experiment(signals, tmp_path):
    """The signal experiment as a file."""
    path = tmp_path / "signals.yaml"
    path.write_text(experiment_from_data(signals.signal_data()).to_yaml())
    return path


@pytest.fixture
def small_sample_data(monkeypatch, tmp_path):
    """Parts of the sample corpus: one sample of each label for training, one held out; `sample-data` is in tmp_path."""
    monkeypatch.chdir(tmp_path)
    modules = (images, videos, films, audio, text)
    for module in modules:
        monkeypatch.setattr(module, "PART", replace(module.PART, counts={"train": 1, "held_out": 1}))
    return [module.PART for module in modules]


# the command itself


def test_version(cli):
    done = cli("--version")
    assert (done.code, done.out) == (0, f"mmmask {mmmask.__version__}\n")


def test_help_names_every_command(cli):
    done = cli("--help")
    assert done.code == 0
    for command in COMMANDS:
        assert re.search(rf"^  {command} ", done.out, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(cli, command):
    done = cli(command, "--help")
    assert done.code == 0
    assert done.out.startswith(f"usage: mmmask {command} ")


def test_an_unknown_command_suggests_the_closest(cli):
    done = cli("recontruct")
    assert done.code == 2
    assert "no command is named 'recontruct'. Did you mean 'reconstruct'? Known: train, submit, list," in done.err


@pytest.mark.parametrize("arguments", [(), ("list", "--bogus"), ("show",), ("describe", "masker"), ("reconstruct",)])
def test_wrong_arguments_are_explained(cli, arguments):
    done = cli(*arguments)
    assert done.code == 2
    assert "usage: mmmask" in done.err
    assert "error: " in done.err


def test_commands_can_be_run_one_after_the_other_in_one_process(cli):
    # the module of `mmmask list` is called like the built-in
    for command in ("list", "env", "list"):
        assert cli(command).code == 0


# list and describe


def test_list_names_every_component_and_experiment(cli):
    done = cli("list")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    for kind, name in [*EVERY_COMPONENT, *(("experiment", name) for name in published_experiments())]:
        assert any(re.match(rf"{kind} +{re.escape(name)} +mmmask +\S", line) for line in lines), (kind, name)


@pytest.mark.parametrize("kind", ["masker", "maskers", "positions", "position", "experiment", "experiments"])
def test_list_of_one_kind(cli, kind):
    done = cli("list", kind)
    assert done.code == 0
    assert {line.split()[0].removesuffix("s") for line in done.out.splitlines()} == {kind.removesuffix("s")}


def test_list_of_an_unknown_kind(mistake):
    assert mistake("list", "maskre").startswith(
        "no kind of component is named 'maskre'. Did you mean 'masker'? Known: "
    )


def test_list_reports_broken_plugins(cli, monkeypatch):
    from mmmask_registry import BrokenPlugin

    monkeypatch.setattr(components(), "broken", [BrokenPlugin("theirs", "their-package", "RuntimeError: no licence")])
    said = "mmmask: plugin theirs (their-package) failed to load: RuntimeError: no licence\n"
    for command in (("list", "masker"), ("show", "quickstart")):  # and train and check, by the same path
        done = cli(*command)
        assert done.code == 0
        assert done.err == said


@pytest.mark.parametrize(("kind", "name"), EVERY_COMPONENT)
def test_describe_every_component(cli, kind, name):
    done = cli("describe", kind, name)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"{kind} {name} (mmmask): ")
    fields = [key for key in components().get(kind, name).Config.model_fields if key != "name"]
    for key in fields:
        assert re.search(rf"^  {key}: .+, (default|required)", done.out, re.MULTILINE), key
    # every setting says what it means, in words of the user's
    assert len(re.findall(r"^      \S", done.out, re.MULTILINE)) == len(fields)
    assert not re.search(
        r"Pydantic|Annotated|typing|NoneType|None|True|False|<class|<function", done.out.partition("\n\n  ")[2]
    )


def test_describe_shows_types_defaults_bounds_and_meaning(cli):
    out = cli("describe", "masker", "random").out
    assert "  mask_ratio: float, default 0.75, >= 0 and <= 1\n      share of the tokens that is masked;" in out
    assert "  round_down: masked | visible, default masked\n" in out
    out = cli("describe", "encoder", "vit").out
    assert "  positions: positions, default flat_sinusoid\n" in out
    assert "  qkv_bias: bool | query_value, default true\n" in out
    assert "  size: tiny | small | base | large | huge | giant | null, default null\n" in out
    assert "  path: str, required\n" in cli("describe", "source", "folder").out


def test_describe_of_an_unknown_component(mistake):
    message = mistake("describe", "masker", "tubee")
    assert message.startswith("no masker is named 'tubee'. Did you mean 'tube'? Known: ")
    assert mistake("describe", "maskr", "tube").startswith("no kind of component is named 'maskr'. Did you mean")


def test_describe_a_published_checkpoint(cli):
    done = cli("describe", "checkpoint", "mae/vit_base/pretrain")
    assert (done.code, done.err) == (0, "")
    found = published()["mae/vit_base/pretrain"]
    assert done.out == (
        f"checkpoint mae/vit_base/pretrain: {found.description}\n\n"
        f"  address: {found.address}\n  format: mae\n  licence: {found.licence}\n  options: none\n"
        "  encoder_alone: yes: the decoder stays as initialised\n  by_hand: no\n"
    )
    by_hand = next(part for part in published().values() if part.by_hand)
    assert "  by_hand: yes: download it, and give the file's path with --format " + by_hand.format in (
        cli("describe", "checkpoint", by_hand.name).out
    )


def test_describe_a_checkpoint_with_options_and_without_a_description(cli, tmp_path):
    plugin = tmp_path / "publishes_for_a_test.py"
    plugin.write_text(
        "import mmmask.hooks\n\n"
        "@mmmask.hooks.hookimpl\n"
        "def publish_checkpoints(publish):\n"
        "    options = {'size': [64, 32], 'normalize': 'none'}\n"
        "    publish('theirs/small', 'https://example.org/a.pth', 'mae', 'MIT', options=options)\n"
    )
    try:
        out = cli("describe", "checkpoint", "theirs/small", "--plugin", plugin).out
    finally:
        components().manager.unregister(name=str(plugin))
    assert out.startswith("checkpoint theirs/small\n\n  address: https://example.org/a.pth\n")
    assert "  options: size=[64,32] normalize=none\n" in out


def test_describe_an_unknown_checkpoint(mistake):
    assert mistake("describe", "checkpoint", "mae/vit_base/pretrian") == (
        "no checkpoint is published as 'mae/vit_base/pretrian'. Did you mean 'mae/vit_base/pretrain'? "
        "`mmmask list checkpoint` names all"
    )
    assert "Did you mean 'checkpoint'?" in mistake("describe", "chekpoint", "mae/vit_base/pretrain")


# show


def test_what_show_prints_loads_again(cli, tmp_path):
    done = cli("show", "omnimae/vit_base_released", "model.encoder.depth=3")
    assert (done.code, done.err) == (0, "")
    path = tmp_path / "again.yaml"
    path.write_text(done.out)
    expected = load_experiment("omnimae/vit_base_released", ["model.encoder.depth=3"])
    assert load_experiment(path).to_data() == expected.to_data()
    assert "# peak learning rate: 0.0016\n" in done.out
    assert cli("show", path).out == done.out


def test_show_counts_the_steps_of_epochs(cli, experiment):
    done = cli("show", experiment, "training.steps=null", "training.epochs={long: 3}")
    # 24 samples in batches of 8, three times
    assert done.out.endswith("# steps: 9\n")


def test_show_of_epochs_without_data_prints_the_experiment(cli, experiment, tmp_path):
    nowhere = "streams.long.source={name: folder, path: nowhere}"
    done = cli("show", experiment, "training.steps=null", "training.epochs={long: 3}", nowhere)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith(
        "# steps: unknown (streams.long.source: source folder: nowhere does not"
    )
    assert parse_yaml(done.out)["training"]["epochs"] == {"long": 3}


def test_show_says_what_a_size_sets(cli, tmp_path):
    done = cli("show", "omnimae/vit_base", "model.encoder.depth=3")
    assert "# model.encoder of size base: width 768, num_heads 12, mlp_ratio 4.0\n" in done.out
    path = tmp_path / "shown.yaml"
    path.write_text(done.out)
    encoder = load_experiment(path, ["model.encoder.size=large"]).model.encoder
    assert (encoder.width, encoder.depth, encoder.num_heads) == (1024, 3, 16)


def test_overrides_may_stand_before_and_after_options(cli, experiment, tmp_path):
    plugin = tmp_path / "empty_plugin_of_a_test.py"
    plugin.write_text("")
    done = cli("show", experiment, "training.steps=5", "--plugin", plugin, "training.seed=3")
    data = parse_yaml(done.out)
    assert (data["training"]["steps"], data["training"]["seed"]) == (5, 3)


def test_show_says_everything_that_is_wrong(mistake):
    found = mistake("show", "quickstart", "training.steps=x", "model.encoder.widht=3", "foo=1", lines=3)
    first, second, third = sorted(found.splitlines())
    assert first == "quickstart: foo: unknown key. Known: description, model, streams, training, data, callbacks"
    assert second.startswith("quickstart: model.encoder.widht: unknown key. Did you mean 'width'? Known: ")
    assert third == "quickstart: training.steps: should be a valid integer, not 'x'"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("quickstrat",), "no experiment is named 'quickstrat'. Did you mean 'quickstart'? Known: "),
        (("nowhere.yaml",), "nowhere.yaml: there is no such file"),
        (("quickstart", "training.steps"), "override: 'training.steps' is not `key.path=value`"),
        (("quickstart", "streams.vidoes=null"), "quickstart: streams.vidoes: no stream to take out. Did you mean 'vid"),
        (("quickstart", "streams=3"), "quickstart: streams: should be an object, not 3"),
        (("quickstart", "--plugin", "nowhere.py"), "--plugin nowhere.py: there is no such file."),
    ],
)
def test_show_of_what_cannot_be(mistake, arguments, message):
    assert mistake("show", *arguments).startswith(message)


# check


def test_check_counts_and_reads_a_batch_of_every_stream(cli, experiment):
    done = cli("check", experiment)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "parameters: 18,584 (encoder 14,712, decoders 3,736, heads 136)"
    assert lines[1].startswith("long: grid 16 = 16 tokens, 4 visible, 12 predicted; 0.00 GFLOP forward, 0.00 in train")
    assert "memory on one process: about 0 MiB for weights" in done.out
    assert "peak learning rate 0.001, 6 steps, joint\n" in done.out
    assert re.search(r"long: 24 samples; read 8 in \d\.\d\d s as torch.uint8 \(8, 2, 64\), values \d+ to \d+", done.out)
    assert "short: 5 held-out samples\n" in done.out
    assert lines[-1] == "ready to train"


@pytest.mark.parametrize(
    ("settings", "bytes_each"),
    [
        ([], 16),
        (["training.optimizer=sgd"], 12),
        (["training.average.decay=0.9"], 20),
        (["training.precision=bf16"], 18),
    ],
)
def test_check_counts_what_the_optimiser_keeps(cli, experiment, settings, bytes_each):
    """Weight and gradient, moments, a moving average, and the weights in 16 bits."""
    done = cli("check", experiment, "model.encoder.width=512", *settings)
    parameters = int(re.match(r"parameters: ([\d,]+)", done.out)[1].replace(",", ""))
    found = int(re.search(r"about (\d+) MiB for weights", done.out)[1])
    assert found == pytest.approx(bytes_each * parameters / 2**20, abs=0.51)
    assert parameters > 1e6


def test_check_tells_classes_and_what_is_left_out(cli, experiment, monkeypatch, signals):
    monkeypatch.setattr(signals.WaveSource, "left_out", "3 .gif", raising=False)
    done = cli(
        "check", experiment, "--device", "cpu", "streams.long.source.labelled=true", "streams.long.source.count=25"
    )
    assert "long: labels: 3 classes, 8 to 9 samples each\n" in done.out
    assert "long: left out: 3 .gif\n" in done.out
    assert "short: labels" not in done.out


def test_check_looks_through_a_source_once(cli, experiment, monkeypatch, signals, tmp_path):
    built = []

    def count(self, *args, **kwargs):
        built.append(self)
        Source.__init__(self, *args, **kwargs)

    monkeypatch.setattr(signals.WaveSource, "__init__", count, raising=False)
    learns = ("objective=classification", "masker=null", "loss=null", "decoder=null", "source.labelled=true")
    done = cli(
        "check", experiment, "--device", "cpu", "--pictures", tmp_path, "streams.short=null",
        "streams.long.held_out.labelled=true", *(f"streams.long.{setting}" for setting in learns),
    )  # fmt: skip
    assert "ready to train" in done.out, done.err
    assert len(built) == 2, "training samples, and held-out ones"


def test_check_tries_a_step(cli, experiment):
    done = cli("check", experiment, "--device", "cpu", "training.precision=bf16")
    assert "one forward and backward of 2 samples per stream on cpu: finite, with all gradients\n" in done.out
    assert "for batches under way" in done.out


def test_check_draws_samples_as_training_sees_them(cli, experiment, tmp_path):
    folder = tmp_path / "drawn"
    done = cli("check", experiment, "--device", "cpu", "--pictures", str(folder))
    assert (done.code, done.err) == (0, "")
    for stream in ("long", "short"):
        assert f"{stream}: {folder / stream}.png shows samples as training sees them\n" in done.out
        with Image.open(folder / f"{stream}.png") as picture:
            assert picture.width > 100


def test_check_says_why_there_is_no_picture(cli, experiment, tmp_path):
    (tmp_path / "file").write_text("no folder")
    done = cli("check", experiment, "--device", "cpu", "--pictures", str(tmp_path / "file"))
    assert done.code == 0
    assert "long: no picture: " in done.out


def test_check_says_when_there_is_no_memory_for_a_step(cli, experiment, monkeypatch):
    monkeypatch.setattr("mmmask.profiling.dry_run.free_memory", lambda device: 10)
    done = cli("check", experiment, "--device", "cpu")
    assert "no step was tried: it needs about 0 MiB, and 0 MiB are free on cpu\n" in done.out
    assert done.out.endswith("ready to train where there is that much memory\n")


@pytest.fixture
def altered(signals, tmp_path):
    """`altered("prepare", change)` is an experiment whose samples are changed on their way."""
    names = []

    def alter(change=lambda sample: sample, shape=(2, 64)):
        class Preparation(signals.SignalPreparation):
            def prepare(self, decoded, generator):
                return change(super().prepare(decoded, generator))

        class Altered(signals.SignalModality):
            sample_shape = shape

            @property
            def preparation(self):
                return Preparation(self.config.length)

        mmmask.register("modality", "altered", Altered)
        names.append("altered")
        data = signals.signal_data()
        del data["streams"]["short"]
        data["streams"]["long"]["modality"] = {"name": "altered"}
        path = tmp_path / "altered.yaml"
        path.write_text(experiment_from_data(data).to_yaml())
        return path

    yield alter
    for name in names:
        components().registry("modality").unregister(name)


def test_check_says_that_samples_are_not_finite(mistake, altered):
    def change(sample):
        values = sample.float() / 255
        values[0, 3] = float("nan")
        return values

    message = mistake("check", altered(change))
    assert message.startswith("streams.long.source: 20 samples in a row could not be decoded; the last: sample ")
    assert "learning_rate" not in message


def test_check_says_that_the_shape_is_not_what_the_modality_says(mistake, altered):
    message = mistake("check", altered(lambda sample: sample[:, :32]))
    assert message == "streams.long: samples are (2, 32), and the modality's sample_shape says (2, 64)"


def test_check_refuses_samples_of_a_type_that_training_refuses(mistake, altered):
    assert mistake("check", altered(lambda sample: sample + 0j)).startswith("streams.long: values must be ")


class ForgetfulLoss(Loss, torch.nn.Module):
    """A loss that lets no gradient through, and may be infinite."""

    class Config(Loss.Config):
        infinite: bool = False

    def __init__(self, config):
        torch.nn.Module.__init__(self)
        self.config, self.weight = config, torch.nn.Parameter(torch.ones(()))

    def prediction_dim(self, spec):
        return spec.content_dim

    def target(self, tokens, index):
        return tokens.values(index)

    def error(self, prediction, target):
        error = (prediction.detach().float() - target).square().mean(-1) + 0 * self.weight
        return error / 0 if self.config.infinite else error


def test_check_finds_parameters_without_gradient_and_infinite_losses(mistake, experiment):
    mmmask.register("loss", "forgetful", ForgetfulLoss)
    try:
        loss = "streams.{}.loss={{name: forgetful, infinite: {}}}"
        message = mistake("check", experiment, loss.format("long", "false"), "streams.short=null")
        assert re.fullmatch(r"model: no gradient reaches \d+ of \d+ parameters, such as encoder\.\S+", message)
        message = mistake("check", experiment, loss.format("long", "true"))
        assert message.startswith("streams.long: the loss of finite samples is inf: the model or the loss is at fault")
    finally:
        components().registry("loss").unregister("forgetful")


def test_check_names_bad_samples(cli, experiment):
    done = cli("check", experiment, "streams.long.source.bad=[1]")
    assert "long: bad sample sample 1: made to be bad\n" in done.out


def test_check_of_a_source_that_is_not_there(mistake, tmp_path, small_sample_data):
    message = mistake("check", "quickstart", *SMALL, f"streams.images.source.path={tmp_path}/nowhere")
    assert message.startswith(f"streams.images.source: source folder: {tmp_path}/nowhere does not exist.")
    assert {path.name for path in (tmp_path / "sample-data").iterdir()} == {"images", "videos"}


def test_check_of_streams_that_do_not_fit_together(mistake, small_sample_data):
    message = mistake("check", "quickstart", *SMALL, "streams.videos.modality.patch_size=[4,8,8]",
                      "streams.videos.modality.embedding=pixels_2x8x8x3")  # fmt: skip
    assert "streams.videos.modality.embedding: 'pixels_2x8x8x3' belongs to tokens of another shape" in message


# bench, env, sample-data


@pytest.mark.slow
def test_bench(cli, experiment):
    done = cli(
        "bench", experiment, "--samples", "2,3", "--repetitions", "1", "--precision", "fp32,bf16", "--device", "cpu"
    )
    assert done.code == 0, done.err
    blocks = re.findall(r"^signals on cpu, (\w+); matmul peak [\d.]+ TFLOP/s in the same run$", done.out, re.MULTILINE)
    assert blocks == ["fp32", "bf16"]
    assert re.search(r"^long +2 ", done.out, re.MULTILINE)
    assert re.search(r"^short +3 ", done.out, re.MULTILINE)
    assert re.search(r"^long \+ short +5 ", done.out, re.MULTILINE)
    assert len(re.findall(r"^the joint step takes \d+\.\d\d of the sum of its parts$", done.out, re.MULTILINE)) == 2
    assert "peak memory" in done.out
    assert re.search(r"^from files: [\d.]+ s a step, of which [\d.]+ s waiting for data$", done.out, re.MULTILINE)


def test_bench_without_data_says_so(cli, tmp_path):
    done = cli("bench", "quickstart", *SMALL, "streams.videos=null", "--samples", "1", "--repetitions", "1",
               f"streams.images.source.path={tmp_path}/nowhere")  # fmt: skip
    assert done.code == 0
    assert "data wait: not measured, as there is no data: streams.images.source: " in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", "2"), "--samples 2: expected a number for each of long, short"),
        (("--samples", "2,a"), "--samples 2,a: expected a number for each of long, short"),
        (("--samples", "2,0"), "--samples 2,0: expected a number for each of long, short"),
        (("--precision", "fp8"), "--precision fp8: expected fp32 or bf16 or fp16"),
        (("--device", "nonsense"), "--device nonsense: "),
    ],
)
def test_bench_with_options_that_cannot_be(mistake, experiment, options, message):
    assert mistake("bench", experiment, *options).startswith(message)


@pytest.mark.parametrize("number", ["0", "-1", "x", "1.5"])
def test_bench_needs_a_repetition(cli, experiment, number):
    done = cli("bench", experiment, f"--repetitions={number}")
    assert done.code == 2
    assert "expected a whole number above zero" in done.err


def test_env(cli):
    done = cli("env")
    assert (done.code, done.err) == (0, "")
    for name in ("python", "platform", "mmmask", "torch", "torchdata", "numpy", "pillow", "av", "pydantic", "cpu"):
        assert re.search(rf"^{name}: \S", done.out, re.MULTILINE)
    assert re.search(r"^plugins?: ", done.out, re.MULTILINE)


def test_env_names_plugins_of_hooks_alone(cli, tmp_path):
    plugin = tmp_path / "averages_of_a_test.py"
    plugin.write_text("import mmmask\n\n@mmmask.hookimpl\ndef run_ended(run, outcome):\n    pass\n")
    try:
        done = cli("env", "--plugin", plugin)
    finally:
        components().manager.unregister(name=str(plugin))
    assert f"plugin: {plugin}\n" in done.out
    assert str(plugin) not in cli("env").out


def test_env_reports_broken_plugins(cli, monkeypatch):
    from mmmask_registry import BrokenPlugin

    monkeypatch.setattr(components(), "broken", [BrokenPlugin("theirs", "their-package", "RuntimeError: no licence")])
    assert "broken plugin: theirs (their-package): RuntimeError: no licence\n" in cli("env").out


def test_sample_data_writes_every_plugins_part(cli, tmp_path, small_sample_data):
    done = cli("sample-data", tmp_path / "corpus")
    assert done.code == 0
    labels = sum(len(part.labels) for part in small_sample_data)
    assert re.search(rf"sample data: {2 * labels + 2 * len(small_sample_data)} files, [\d.]+ MiB in", done.err)
    for part in small_sample_data:
        for split in ("train", "held_out"):
            found = (tmp_path / "corpus" / part.name / split).glob(f"*/*{part.suffix}")
            assert {path.parent.name for path in found} == set(part.labels)


def test_sample_data_needs_a_folder(mistake, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert mistake("sample-data", tmp_path / "file").startswith(f"{tmp_path}/file: not a folder")
    assert mistake("sample-data", tmp_path / "file" / "below").startswith(f"{tmp_path}/file/below: not a folder")


# train


def test_train_and_a_finished_run(cli, experiment, tmp_path):
    arguments = ("train", experiment, "--output", tmp_path / "run", "training.steps=2", "--device", "cpu")
    done = cli(*arguments)
    assert done.code == 0, done.err
    assert f"run: {tmp_path}/run, 2 steps done\n" in done.out
    assert re.search(r"^step 2/2  loss long [\d.]+  short [\d.]+  \d+ samples/s  0:00 left$", done.err, re.MULTILINE)
    assert "long: held-out loss" in done.out
    assert "long: reconstructions in " in done.out
    done = cli(*arguments)
    assert done.code == 0
    assert "2 steps done (it was finished before; --output starts another)" in done.out


def test_train_with_other_settings_into_the_same_folder(cli, mistake, experiment, tmp_path):
    run = tmp_path / "run"
    assert cli("train", experiment, "--output", run, "training.steps=1", "--device", "cpu").code == 0
    message = mistake(
        "train", experiment, "--output", run, "training.steps=1", "model.encoder.depth=1", "training.seed=4", lines=3
    )
    assert message.splitlines() == [
        f"{run}: model.encoder.depth: 2 in the run, now 1",
        f"{run}: training.seed: 0 in the run, now 4",
        f"{run}: these settings are not those of the run: start another run with --output, or set them back",
    ]


def test_train_where_something_else_is(mistake, experiment, tmp_path):
    (tmp_path / "file").write_text("mine")
    assert mistake("train", experiment, "--output", tmp_path / "file").startswith(f"{tmp_path}/file: not a folder")
    assert "not empty, and no run of mmmask: choose another folder" in mistake(
        "train", experiment, "--output", tmp_path
    )
    assert "--device nonsense: " in mistake("train", experiment, "--output", tmp_path / "x", "--device", "nonsense")


def test_figures_of_other_evaluators_are_reported_too():
    first, last = ({"step": step, "stream": "long", "dimensions": 3.0 + step, "share": None} for step in (0, 2))
    assert held_out_figures(first, last) == "dimensions 3 at the start, 5 at the end"
    assert held_out_figures({"step": 0, "stream": "long"}, {"step": 2, "stream": "long"}) == ""

"""`mmmask convert`: what it reads, what it writes, and what it says."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import mmmask
from mmmask.components import components
from mmmask.interfaces import Format, Written

SMALL = (
    "model.encoder.width=24", "model.encoder.depth=1", "model.encoder.num_heads=2", "model.decoder.width=16",
    "model.decoder.depth=1", "model.decoder.num_heads=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return mmmask.build_model(mmmask.load_experiment("quickstart", SMALL))


@pytest.fixture
def checkpoint(model, tmp_path):
    path = tmp_path / "model.safetensors"
    mmmask.interop.save(model, path)
    return path


@pytest.fixture
def encoder_only(checkpoint, tmp_path):
    """The checkpoint without its decoder and heads."""
    state = {key: tensor for key, tensor in load_file(checkpoint).items() if not key.startswith("objectives.")}
    path = tmp_path / "encoder.safetensors"
    save_file(state, path)
    return path


class LayoutOfATest(Format):
    """Encoder weights, and a config.json."""

    @classmethod
    def recognizes(cls, keys):
        return False

    def read(self, state):
        raise NotImplementedError

    def write(self, settings, state):
        kept = {f"theirs.{key}": tensor for key, tensor in state.items() if key.startswith("encoder.")}
        left = {key: "it has no decoder" for key in state if not key.startswith("encoder.")}
        return Written(kept, {"hidden_size": settings["model"]["encoder"]["width"]}, left)


class ReadLayoutOfATest(Format):
    """For reading only."""

    @classmethod
    def recognizes(cls, keys):
        return False

    def read(self, state):
        raise NotImplementedError


@pytest.fixture
def read_only():
    mmmask.register("format", "read_only", ReadLayoutOfATest)
    yield "read_only"
    components().registry("format").unregister("read_only")


class WholeLayoutOfATest(LayoutOfATest):
    """All weights."""

    def write(self, settings, state):
        return Written({f"theirs.{key}": tensor for key, tensor in state.items()})


@pytest.fixture
def whole():
    mmmask.register("format", "whole", WholeLayoutOfATest)
    yield "whole"
    components().registry("format").unregister("whole")


@pytest.fixture
def theirs():
    mmmask.register("format", "theirs", LayoutOfATest)
    yield "theirs"
    components().registry("format").unregister("theirs")


def test_a_checkpoint_written_again_is_the_same_model(cli, model, checkpoint, tmp_path):
    output = tmp_path / "new" / "again.safetensors"
    done = cli("convert", checkpoint, "-o", output)
    assert (done.code, done.err) == (0, "")
    first, second = done.out.splitlines()
    keys = len(model.state_dict())
    assert first == f"format mmmask: {keys} keys loaded, 0 of the file's converted, 1 unused, 0 missing"
    assert second.startswith(f"written: {output} (format mmmask, {keys + 1} tensors, ")
    again = mmmask.interop.load(output)
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_a_real_process(checkpoint, tmp_path):
    output = tmp_path / "again.safetensors"
    command = [sys.executable, "-m", "mmmask", "convert", str(checkpoint), "--to", "mmmask", "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_file(output).keys() == load_file(checkpoint).keys()


def test_a_runs_folder_is_its_newest_checkpoint(cli, mistake, pixel_run, tmp_path):
    done = cli("convert", pixel_run, "-o", tmp_path / "run.safetensors")
    assert done.code == 0, done.err
    trained = mmmask.load_run(pixel_run).model
    assert done.out.startswith(
        f"format run (step 2): {len(trained.state_dict())} keys loaded, 0 of the file's converted, 0 unused, "
    )
    again = mmmask.interop.load(tmp_path / "run.safetensors")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in trained.state_dict().items())
    for option in (("--format", "mmmask"), ("--no-strict",), ("num_heads=4",)):
        message = mistake("convert", pixel_run, "-o", tmp_path / "no.safetensors", *option)
        assert (
            message == f"{' '.join(option)}: {pixel_run} is a folder, and only a checkpoint's file is read with options"
        )
    (file,) = (pixel_run / "checkpoints").glob("*.pt")
    folder = pixel_run / "checkpoints" / "step_00000001"  # as a sharded one has
    folder.mkdir()
    for checkpoint in (file, folder):
        assert mistake("convert", checkpoint, "-o", tmp_path / "no.safetensors") == (
            f"{checkpoint}: a checkpoint to go on training from; give the run's folder, {pixel_run}"
        )
    folder.rmdir()


def test_a_layout_with_a_config_and_no_place_for_the_decoder(cli, model, checkpoint, theirs, tmp_path):
    done = cli("convert", checkpoint, "--to", theirs, "-o", tmp_path / "theirs.safetensors")
    assert done.code == 0, done.err
    left = [key for key in model.state_dict() if not key.startswith("encoder.")]
    assert f"left out, {len(left)} keys ({left[0]}, ...): it has no decoder\n" in done.out
    assert done.out.splitlines()[-1] == f"written: {tmp_path}/config.json"
    assert (tmp_path / "config.json").read_text() == '{\n  "hidden_size": 24\n}\n'
    assert all(key.startswith("theirs.encoder.") for key in load_file(tmp_path / "theirs.safetensors"))


def test_a_published_layout_is_written_whole(cli, tmp_path):
    small = [
        "model.encoder.size=tiny",
        "model.encoder.depth=1",
        "model.decoder.depth=1",
        "streams.images.modality.size=32",
    ]
    model = mmmask.build_model(mmmask.load_experiment("mae/vit_base", small))
    mmmask.interop.save(model, tmp_path / "own.safetensors")
    done = cli("convert", tmp_path / "own.safetensors", "--to", "mae", "-o", tmp_path / "mae.safetensors")
    assert (done.code, done.err) == (0, "")
    assert "left out" not in done.out
    again = mmmask.interop.read(tmp_path / "mae.safetensors")
    assert again.report.format == "mae"
    assert all(torch.equal(tensor, again.model.state_dict()[key]) for key, tensor in model.state_dict().items())


def test_verbose_names_every_key(cli, model, checkpoint, theirs, tmp_path):
    done = cli("convert", "--verbose", checkpoint, "--to", theirs, "-o", tmp_path / "theirs.safetensors")
    assert "  unused  mmmask.settings: what the model was built from\n" in done.out
    for key in model.state_dict():
        assert (f"  left out  {key}: it has no decoder\n" in done.out) != key.startswith("encoder.")


def test_an_encoder_alone_needs_no_strict(cli, mistake, encoder_only, tmp_path):
    output = tmp_path / "whole.safetensors"
    message = mistake("convert", encoder_only, "-o", output)
    assert message.endswith("keys of it: --no-strict loads the encoder alone")
    assert not output.exists()
    done = cli("convert", encoder_only, "--no-strict", "--verbose", "-o", output)
    assert done.code == 0, done.err
    assert "mask_token: not in the file; as initialised (--no-strict)\n" in done.out
    assert mmmask.interop.load(output).objectives["masked"].decoders


def test_what_is_not_from_the_file_is_said(cli, model, encoder_only, theirs, tmp_path):
    state = load_file(encoder_only)
    done = cli("convert", encoder_only, "--no-strict", "-o", tmp_path / "whole.safetensors")
    keys = model.state_dict()
    initialised = [key for key in keys if key not in state]
    parts = ", ".join(dict.fromkeys(key.partition(".")[0] for key in initialised))
    assert parts.startswith("objectives")
    assert done.err == (
        f"mmmask: {len(initialised)} of {len(keys)} tensors are not from {encoder_only}: as initialised ({parts})\n"
    )
    # of a part that is there in part, how much is not
    for key in ("encoder.norm.weight", "encoder.norm.bias"):
        del state[key]
    save_file(state, tmp_path / "damaged.safetensors")
    done = cli("convert", tmp_path / "damaged.safetensors", "--no-strict", "-o", tmp_path / "again.safetensors")
    of = sum(key.startswith("encoder.") for key in keys)
    assert f"as initialised (2 of {of} of encoder, {parts})\n" in done.err
    # a layout without a place for them has none to be said
    done = cli("convert", encoder_only, "--no-strict", "--to", theirs, "-o", tmp_path / "new" / "theirs.safetensors")
    assert (done.code, done.err) == (0, "")


def test_no_other_layout_is_filled_up_with_what_was_initialised(
    cli, mistake, model, checkpoint, encoder_only, theirs, whole, tmp_path
):
    output = tmp_path / "new" / "whole.safetensors"
    message = mistake("convert", encoder_only, "--no-strict", "--to", whole, "-o", output)
    missing = len(model.state_dict().keys() - load_file(encoder_only).keys())
    start, _, choose = message.partition(": give a file that has them, decoder and all, or write layout ")
    assert start == (
        f"layout {whole}: {missing} of {len(model.state_dict())} tensors are not from {encoder_only}: as initialised "
        "(objectives), and it would hold them as weights"
    )
    assert {"mmmask", theirs} <= set(choose.split(" or ")) <= {"mmmask", theirs, "timm_vit"}
    assert not output.parent.exists()
    done = cli("convert", checkpoint, "--no-strict", "--to", whole, "-o", output)
    assert (done.code, done.err) == (0, "")


def test_what_cannot_be_written_is_said_before_anything_is_read(mistake, theirs, read_only, tmp_path):
    nowhere, output = tmp_path / "nowhere.safetensors", tmp_path / "out.safetensors"
    names = [entry.name for entry in components().registry("format")]
    assert mistake("convert", nowhere, "--to", "maa", "-o", output) == (
        f"no format is named 'maa'. Did you mean 'mae'? Known: {', '.join(names)}. "
        f"Written can be: {', '.join(name for name in names if writable(name))}."
    )
    assert mistake("convert", nowhere, "--to", read_only, "-o", output).startswith(
        "the format 'read_only' is for reading only. Written can be: "
    )
    assert mistake("convert", nowhere, "-o", tmp_path / "out.pt") == (
        f"{tmp_path}/out.pt: let the name end in .safetensors"
    )
    output.write_bytes(b"mine")
    assert mistake("convert", nowhere, "-o", output) == (f"{output}: there is a file already; nothing is overwritten")
    assert mistake("convert", nowhere, "-o", output / "below.safetensors") == (
        f"{output}/below.safetensors: cannot be written: {output} is no folder"
    )
    assert output.read_bytes() == b"mine"


def test_a_config_that_is_there_is_found_before_anything_is_read(cli, mistake, checkpoint, theirs, tmp_path):
    (tmp_path / "config.json").write_text("mine")
    message = mistake("convert", tmp_path / "nowhere.safetensors", "--to", theirs, "-o", tmp_path / "out.safetensors")
    assert message == (
        f"{tmp_path}/out.safetensors: {tmp_path}/config.json is there already, which layout theirs may need "
        "for its own; nothing is overwritten: choose another folder"
    )
    assert (tmp_path / "config.json").read_text() == "mine"
    # mmmask's own layout has none
    assert cli("convert", checkpoint, "-o", tmp_path / "out.safetensors").code == 0


def test_a_mistake_leaves_no_folder(mistake, checkpoint, read_only, tmp_path):
    for arguments in ((tmp_path / "nowhere.safetensors",), (checkpoint, "num_head=4"), (checkpoint, "--to", read_only)):
        assert mistake("convert", *arguments, "-o", tmp_path / "a" / "b" / "out.safetensors")
        assert not (tmp_path / "a").exists()


def test_a_broken_format_is_nobody_elses_problem(cli, mistake, checkpoint, tmp_path):
    mmmask.register("format", "broken", "no_such_module_of_a_test:Format")
    try:
        assert cli("convert", checkpoint, "-o", tmp_path / "out.safetensors").code == 0
        message = mistake("convert", checkpoint, "--to", "maa", "-o", tmp_path / "other.safetensors")
        assert message.startswith("no format is named 'maa'.")
        assert "broken" not in message.partition("Written can be: ")[2]
        assert "no_such_module_of_a_test" in mistake(
            "convert", checkpoint, "--to", "broken", "-o", tmp_path / "o.safetensors"
        )
    finally:
        components().registry("format").unregister("broken")


def writable(name):
    return components().get("format", name).write is not Format.write


def test_sources_that_cannot_be_read(cli, mistake, checkpoint, tmp_path):
    def refused(*arguments):
        return mistake("convert", *arguments, "-o", tmp_path / "out.safetensors")

    assert refused("nowhere.pth").startswith("nowhere.pth: there is no such file, and no checkpoint is published as ")
    assert "Did you mean 'mae/vit_base/pretrain'?" in refused("mae/vit_base/pretrian")
    assert refused(tmp_path) == (
        f"{tmp_path}: no run here (there is no experiment.yaml in it); of another checkpoint, give the file itself"
    )
    save_file({"a": torch.ones(1)}, tmp_path / "odd.safetensors")
    assert "is of no known format; give --format, one of: " in refused(tmp_path / "odd.safetensors")
    assert refused(checkpoint, "num_head=4").startswith("format mmmask: option num_head: unknown key.")
    assert refused(checkpoint, "num_heads") == "override: 'num_heads' is not `key.path=value`"
    assert refused(checkpoint, "format=mae") == "format=mae: no option of a format; give --format"
    assert refused(checkpoint, "--format", "mea").startswith("no format is named 'mea'. Did you mean 'mae'?")
    assert "option size: " in refused(checkpoint, "--format", "omnimae", "size=[1, 2]")
    done = cli("convert", checkpoint)
    assert done.code == 2
    assert "required: -o/--output" in done.err


def test_a_published_encoder_without_its_decoder_fills_no_other_layout(
    cli, mistake, model, encoder_only, whole, tmp_path, monkeypatch
):
    """Such a name is read without its decoder though nobody said --no-strict."""
    from mmmask.interop import loading
    from mmmask.interop.published import Published

    named = Published("theirs/small", str(encoder_only), "mmmask", "MIT", encoder_alone=True)
    monkeypatch.setattr(loading, "published", lambda: {"theirs/small": named})
    monkeypatch.setattr(loading, "address_of", lambda checkpoint: checkpoint.address)
    missing = len(model.state_dict().keys() - load_file(encoder_only).keys())
    message = mistake("convert", "theirs/small", "--to", whole, "-o", tmp_path / "whole.safetensors")
    problem = f"{missing} of {len(model.state_dict())} tensors are not from theirs/small"
    assert message.startswith(f"layout {whole}: {problem}")
    done = cli("convert", "theirs/small", "-o", tmp_path / "own.safetensors")
    assert f"mmmask: {problem}" in done.err


def test_from_python_and_a_run_is_loaded_by_its_folder(pixel_run, tmp_path):
    trained = mmmask.load_run(pixel_run).model.state_dict()
    loaded = mmmask.interop.read(pixel_run)
    assert all(torch.equal(tensor, trained[key]) for key, tensor in loaded.model.state_dict().items())
    assert loaded.report.loaded.keys() == trained.keys()
    done = mmmask.interop.convert(pixel_run, "mmmask", tmp_path / "run.safetensors")
    assert done.initialised == ""
    assert mmmask.interop.load(str(pixel_run)).state_dict().keys() == trained.keys()

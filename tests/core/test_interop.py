"""Reading and writing files of weights, whatever their layout: wrappers, damage, other people's mistakes."""

import json
from pathlib import Path

import pytest
import torch

import mmmask
from mmmask.components import components
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import ForeignWeights, Written
from mmmask.interfaces.writing import WriteError
from mmmask.interop import InteropError, load, read, save
from mmmask.interop.checkpoint_file import read_state
from mmmask.model.build import build_model, settings_of


class Code:
    """Something that only pickle could bring back."""


@pytest.fixture
def model(signals):
    return build_model(experiment_from_data(signals.signal_data()))


@pytest.fixture
def state(model, tmp_path):
    from safetensors.torch import load_file

    save(model, tmp_path / "own" / "model.safetensors")
    return load_file(tmp_path / "own" / "model.safetensors")


@pytest.fixture
def registered():
    """Registers a format for the time of a test."""
    names = []

    def register(name, target):
        mmmask.register("format", name, target)
        names.append(name)

    yield register
    for name in names:
        components().registry("format").unregister(name)


class TestWrappers:
    @pytest.mark.parametrize("path", [["model"], ["state_dict", "model"], ["checkpoint", "model_state"], ["module"]])
    def test_they_are_opened_however_deep(self, state, path):
        wrapped = state
        for key in reversed(path):
            wrapped = {key: wrapped, "epoch": 3}
        assert read(wrapped).report.format == "mmmask"

    def test_what_parallel_training_puts_before_keys_is_taken_off(self, state):
        assert read_state({f"module.{key}": tensor for key, tensor in state.items()}).keys() == state.keys()
        mixed = {"module.a": torch.zeros(1), "b": torch.zeros(1)}
        assert read_state(mixed).keys() == mixed.keys()

    def test_what_is_there_instead_is_named(self):
        with pytest.raises(InteropError, match="not a single tensor in it; it holds optimizer, epoch"):
            load({"optimizer": {"lr": 1}, "epoch": 2})


class TestDamage:
    @pytest.mark.parametrize(
        ("tensor", "kind"),
        [
            (torch.zeros(2, dtype=torch.complex64), "complex64"),
            (torch.eye(2).to_sparse(), "sparse_coo"),
            (torch.zeros(2, device="meta"), "without numbers"),
        ],
    )
    def test_tensors_that_are_no_plain_numbers(self, state, tensor, kind):
        with pytest.raises(InteropError, match=rf"odd: a tensor that cannot be loaded \({kind}\); expected plain numb"):
            load(state | {"odd": tensor})

    def test_nobody_is_told_to_run_a_files_code(self, tmp_path):
        torch.save({"model": Code()}, tmp_path / "code.pth")
        (tmp_path / "picture.pth").write_bytes(b"\xff\xd8\xff not weights")
        with pytest.raises(InteropError, match=r"nothing else is ever loaded: it needs \S+\.Code$"):
            load(tmp_path / "code.pth")
        with pytest.raises(InteropError) as raised:
            load(tmp_path / "picture.pth")
        assert "weights_only" not in str(raised.value)

    def test_mixed_problems_are_all_named(self, state):
        state = {key: tensor for key, tensor in state.items() if not key.startswith("objectives.masked.heads.")}
        name = next(key for key in state if key.endswith("norm1.weight"))
        with pytest.raises(InteropError) as raised:
            load(state | {name: torch.zeros(3), "junk": torch.zeros(1)})
        lines = str(raised.value).splitlines()
        assert any("needed, not in the file" in line for line in lines)
        assert any(f"{name}: shape (3,)" in line for line in lines)
        assert any("junk: not a key of the model" in line for line in lines)

    def test_the_model_has_the_widest_dtype_of_the_file(self, state):
        first = next(key for key, tensor in state.items() if tensor.is_floating_point())
        loaded = load(state | {first: state[first].half()})
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {torch.float32}
        halves = {key: t.half() if t.is_floating_point() else t for key, t in state.items()}
        assert {tensor.dtype for tensor in load(halves).state_dict().values()} == {torch.float16}


def test_files_from_before_there_were_objectives_are_read(state):
    """Their keys knew no objectives, and some settings had other names."""
    settings = json.loads(bytes(state["mmmask.settings"].tolist()))
    settings["model"]["encoder"]["hidden_tokens"] = settings["model"]["encoder"].pop("masked_tokens")
    for stream in settings["streams"].values():
        del stream["objective"]
        stream["masker"]["round_down"] = "hidden"
        stream["predict"] = {"name": "tube", "mask_ratio": 0.5, "round_down": "hidden"}
    encoded = torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)
    early = {key.removeprefix("objectives.masked."): tensor for key, tensor in state.items()}
    loaded = read(early | {"mmmask.settings": encoded})
    assert {key for (key,) in loaded.report.origin.values()} == set(early) - {"mmmask.settings"}
    weights = loaded.model.state_dict()
    assert weights.keys() == state.keys() - {"mmmask.settings"}
    assert all(torch.equal(tensor, state[key]) for key, tensor in weights.items())
    found = settings_of(loaded.model)
    assert found["model"]["encoder"]["masked_tokens"] == "drop"
    assert {stream["decoder_masker"]["name"] for stream in found["streams"].values()} == {"tube"}


class TestOtherPeoplesFormats:
    class Failing(mmmask.Format):
        @classmethod
        def recognizes(cls, keys):
            raise KeyError("absent")

        def read(self, state):
            raise NotImplementedError

    def test_one_that_fails_is_left_out(self, state, registered):
        registered("failing", self.Failing)
        registered("absent", "no_such_module:Format")
        assert read(state).report.format == "mmmask"
        with pytest.raises(InteropError) as raised:
            load({"unknown": torch.zeros(2)})
        first, *others = str(raised.value).splitlines()
        assert "is of no known format" in first
        assert len(others) == 2
        assert all("could not be asked" in line for line in others)

    def test_options_come_from_the_config_beside_a_file(self, tmp_path, model, registered):
        seen = []

        class Configured(mmmask.Format):
            class Config(mmmask.Format.Config):
                heads: int = 0
                size: int = 0

            @classmethod
            def recognizes(cls, keys):
                return False

            @classmethod
            def options_from(cls, config):
                return {"heads": config["num_attention_heads"], "size": 5} if config else {}

            def read(self, state):
                seen.append((self.config.heads, self.config.size))
                return ForeignWeights(settings_of(model), dict(state), {key: (key,) for key in state})

            def write(self, settings, state):
                return Written(dict(state), {"num_attention_heads": 7})

        registered("configured", Configured)
        path = tmp_path / "exported" / "model.safetensors"
        save(model, path, "configured")
        assert json.loads(path.with_name("config.json").read_text()) == {"num_attention_heads": 7}
        load(path, "configured")
        load(path, "configured", size=9)
        (path.parent / "config.json").write_text("damaged")
        with pytest.raises(InteropError, match=r"config\.json: cannot be read: it is no JSON"):
            load(path, "configured")
        (path.parent / "config.json").unlink()
        load(path, "configured")
        assert seen == [(7, 5), (7, 9), (0, 0)]


def test_settings_say_everything_a_writer_needs():
    experiment = mmmask.load_experiment("mae/vit_base", ["model.encoder.size=tiny", "model.encoder.depth=1"])
    settings = settings_of(build_model(experiment))
    encoder = settings["model"]["encoder"]
    assert (encoder["width"], encoder["depth"], encoder["num_heads"], encoder["mlp_ratio"]) == (192, 1, 3, 4.0)
    assert encoder["positions"] == {"name": "sincos_2d", "trained_grid": None, "first": "column"}
    again = build_model(experiment_from_data(settings))
    assert again.state_dict().keys() == build_model(experiment).state_dict().keys()


def test_a_file_that_cannot_be_written_says_so(model):
    with pytest.raises(WriteError, match=r"/proc/x.safetensors: cannot be written"):
        save(model, "/proc/x.safetensors")


def test_nothing_is_left_of_a_file_that_could_not_be_finished(model, tmp_path, monkeypatch):
    import safetensors.torch

    def full(state, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(WriteError, match="no space left on device"):
        save(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []

"""What every registered component promises, whoever supplies it; a new one is tested by being registered."""

import inspect
import json
import pickle

import pytest
import torch
from pydantic import BaseModel, ValidationError

from mmmask.components import INTERFACES, components
from mmmask.compose import dump_yaml, parse_yaml
from mmmask.experiment import Experiment, experiment_from_data
from mmmask.interfaces import MaskContext, Tokens
from mmmask.interfaces.component import build, chosen_kind, validate_strictly
from mmmask.interfaces.masker import rows_noise
from mmmask.interfaces.source import SourceFile
from mmmask.model.build import build_model
from mmmask.model.masks import draw_mask
from mmmask_registry import MmmaskError

ENTRIES = [(kind, entry.name) for kind, registry in components().registries.items() for entry in registry]
# settings that have no default
REQUIRED = {("source", name): {"path": "somewhere"} for name in ("folder", "list", "glob")} | {
    ("positions", "relative_bias"): {"num_heads": 4}
}
# small settings for the tests that build a model: (names of settings, value), taken where a component has them
SMALL = {"size": None, "width": 32, "depth": 2, "num_heads": 4}
# what fits a component to the samples below, beyond that
FITTING = {
    ("encoder", "swin"): {"embed_patch": 2, "window": 4},
    ("encoder", "conv_vit"): {"stage_widths": [8, 16]},
}
# what a decoder asks of the encoder
ENCODER_FOR = {"in_place": {"hidden_tokens": "replace"}}
IMAGE = {"name": "image", "size": 64, "patch_size": [16, 16]}
VIDEO = {"name": "video", "size": 64, "num_frames": 4, "patch_size": [2, 16, 16]}
GRIDS = [(16,), (7,), (14, 14), (4, 6), (1, 14, 14), (8, 14, 14), (2, 4, 6)]


def named(kind):
    return [name for of, name in ENTRIES if of == kind]


def config(kind, name, **settings):
    component = components().get(kind, name)
    return validate_strictly(component.Config, {"name": name, **REQUIRED.get((kind, name), {}), **settings})


def small(kind, name):
    fields = components().get(kind, name).Config.model_fields
    sized = {key: value for key, value in SMALL.items() if key in fields and value is not None}
    return {"name": name} | sized | FITTING.get((kind, name), {})


def experiment(modality=IMAGE, encoder="vit", decoder="transformer", loss="pixels", masker="random"):
    return experiment_from_data(
        {
            "model": {
                "encoder": small("encoder", encoder) | ENCODER_FOR.get(decoder, {}),
                "decoder": small("decoder", decoder),
            },
            "streams": {
                "a": {
                    "modality": modality,
                    "masker": {"name": masker},
                    "loss": {"name": loss},
                    "batch_size": 2,
                }
            },
        }
    )


def samples(modality, count=2):
    return torch.randint(0, 256, (count, *modality.sample_shape), dtype=torch.uint8, generator=generator())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_there_is_something_of_every_kind():
    assert {kind for kind, _ in ENTRIES} == set(INTERFACES)


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
class TestEveryComponent:
    def test_it_can_be_imported_and_keeps_its_interface(self, kind, name):
        found = components().get(kind, name)
        assert not inspect.isabstract(found), f"lacks {sorted(found.__abstractmethods__)}"
        assert components().registry(kind).entry(name).description

    def test_it_says_what_it_is(self, kind, name):
        assert inspect.getdoc(components().get(kind, name)).strip()

    def test_every_setting_is_described(self, kind, name):
        settings = components().get(kind, name).Config
        missing = [key for key, field in settings.model_fields.items() if key != "name" and not field.description]
        assert not missing, "mmmask describe would say nothing about them"

    def test_its_settings_survive_yaml_and_json(self, kind, name):
        first = config(kind, name)
        assert first.name == name
        data = first.model_dump(mode="json")
        assert validate_strictly(type(first), json.loads(json.dumps(data))) == first
        assert validate_strictly(type(first), parse_yaml(dump_yaml(data))) == first
        assert pickle.loads(pickle.dumps(first)) == first

    def test_its_settings_are_strict(self, kind, name):
        settings = config(kind, name)
        with pytest.raises(ValidationError):
            config(kind, name, a_setting_that_nobody_has=1)
        with pytest.raises(ValidationError):
            settings.name = "another"

    def test_the_command_line_describes_it(self, kind, name, capsys):
        from mmmask.cli import main

        assert main(["describe", kind, name]) == 0
        out = capsys.readouterr().out
        for key in components().get(kind, name).Config.model_fields:
            assert key == "name" or f"  {key}: " in out


@pytest.mark.parametrize("model", [Experiment], ids=lambda model: model.__name__)
def test_every_setting_of_an_experiment_is_described(model):
    seen, missing = set(), []

    def look(model, where):
        if model in seen:
            return
        seen.add(model)
        for key, field in model.model_fields.items():
            annotation = field.annotation
            nested = inspect.isclass(annotation) and issubclass(annotation, BaseModel) and chosen_kind(field) is None
            if nested:
                look(annotation, f"{where}{key}.")
            elif not field.description and key != "streams":
                missing.append(where + key)

    look(model, "")
    from mmmask.experiment import StreamSettings

    look(StreamSettings, "streams.NAME.")
    assert not missing


@pytest.mark.parametrize("name", named("modality"))
class TestEveryModality:
    def build(self, name):
        known = {"image": IMAGE, "video": VIDEO}
        settings = {key: value for key, value in known.get(name, {}).items() if key != "name"}
        return build("modality", config("modality", name, **settings))

    def test_its_sizes_agree(self, name):
        modality = self.build(name)
        batch = samples(modality)
        tokens = modality.tokenize(batch)
        count = torch.tensor(tokens.grid).prod().item()
        assert tokens.content.shape == (2, count, modality.spec.content_dim)
        assert tokens.grid == modality.grid(modality.sample_shape) == modality.grid(batch.shape)
        assert tokens.spec == modality.spec
        assert len(modality.spec.patch_size) == len(tokens.grid)
        assert modality.sample_shape[0] == modality.spec.channels
        assert len(modality.spec.mean) in (0, modality.spec.channels)
        assert len(modality.spec.std) in (0, modality.spec.channels)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
    def test_detokenize_is_the_inverse_of_tokenize(self, name, dtype):
        modality = self.build(name)
        batch = samples(modality).to(dtype)
        tokens = modality.tokenize(batch)
        assert tokens.content.dtype == dtype
        back = modality.detokenize(tokens.content, tokens.grid)
        assert back.dtype == dtype
        assert torch.equal(modality.tokenize(back).content, tokens.content)

    def test_tokens_are_a_rearrangement(self, name):
        modality = self.build(name)
        batch = samples(modality)
        tokens = modality.tokenize(batch)
        if tokens.content.numel() == batch.numel():
            assert torch.equal(tokens.content.flatten(1).sort().values, batch.flatten(1).sort().values)
            assert torch.equal(modality.detokenize(tokens.content, tokens.grid), batch)

    def test_a_sample_of_the_wrong_size_is_refused(self, name):
        modality = self.build(name)
        shape = list(modality.sample_shape)
        shape[-1] += 1
        with pytest.raises(ValueError, match="."):
            modality.tokenize(torch.zeros(1, *shape))

    def test_its_worker_side_can_be_pickled(self, name):
        preparation = self.build(name).preparation
        again = pickle.loads(pickle.dumps(preparation))
        assert type(again) is type(preparation)
        assert again.extensions == preparation.extensions
        assert all(ending == ending.lower() and ending.startswith(".") for ending in preparation.extensions)
        held = [value for value in vars(preparation).values() if isinstance(value, torch.Tensor)]
        assert not held, "a worker side holds settings, not tensors"
        sample = samples(self.build(name), 1)[0]
        assert torch.equal(again.collate([sample, sample]), preparation.collate([sample, sample]))

    def test_a_file_it_cannot_read_is_a_bad_sample(self, name, tmp_path):
        from mmmask.interfaces import BadSample

        preparation = self.build(name).preparation
        if not preparation.extensions:
            pytest.skip("reads no files")
        path = tmp_path / f"broken{preparation.extensions[0]}"
        for content in (b"", b"not what it says", bytes(5000)):
            path.write_bytes(content)
            with pytest.raises(BadSample):
                preparation.prepare(preparation.decode(SourceFile(str(path)), generator()), generator())
        with pytest.raises(BadSample):
            preparation.decode(SourceFile(str(tmp_path / f"missing{preparation.extensions[0]}")), generator())

    def test_its_embedding_fits(self, name):
        modality = self.build(name)
        assert modality.embedding
        tokens = modality.tokenize(samples(modality))
        assert modality.build_embedding(24)(tokens.values()).shape == (*tokens.content.shape[:2], 24)


@pytest.mark.parametrize("name", named("masker"))
@pytest.mark.parametrize("grid", GRIDS, ids=str)
class TestEveryMasker:
    def masker(self, name, **settings):
        return build("masker", config("masker", name, **settings))

    def ratios(self, name):
        has_ratio = "mask_ratio" in components().get("masker", name).Config.model_fields
        return (0.0, 0.3, 0.5, 0.75, 0.9) if has_ratio else (None,)

    def draw(self, masker, grid, first=0, rows=6, total=6, step=0):
        tokens = torch.Size(grid).numel()
        modality = build("modality", config("modality", "image", size=64))
        content = torch.rand(total, tokens, modality.spec.content_dim, generator=generator())[first : first + rows]
        noise = rows_noise(123 + step, first, total, torch.device("cpu"))
        held = Tokens(content, grid, modality.spec)
        return draw_mask(masker, None, MaskContext(grid, rows, torch.device("cpu"), noise, step, held))

    def cases(self, name, grid):
        """Maskers at several ratios, where they take this grid at all."""
        count = 0
        for ratio in self.ratios(name):
            masker = self.masker(name, **({} if ratio is None else {"mask_ratio": ratio}))
            try:
                hidden = masker.num_hidden(grid, 0)
                self.draw(masker, grid)
            except MmmaskError:
                continue
            count += 1
            yield masker, hidden
        if not count:
            pytest.skip(f"{name} does not take a grid {grid}")

    def test_exactly_as_many_are_hidden_as_promised(self, name, grid):
        for masker, count in self.cases(name, grid):
            mask = self.draw(masker, grid)
            tokens = torch.Size(grid).numel()
            assert 0 <= count < tokens
            assert (mask.hidden.sum(dim=1) == count).all()
            assert mask.visible.shape == (6, tokens - count)
            assert mask.predicted.shape == (6, count)
            assert (mask.visible.diff(dim=1) > 0).all()
            assert (mask.predicted.diff(dim=1) > 0).all()
            assert mask.hidden.gather(1, mask.predicted).all()
            assert not mask.hidden.gather(1, mask.visible).any()

    def test_it_depends_on_its_noise_alone(self, name, grid):
        for masker, _ in self.cases(name, grid):
            first = self.draw(masker, grid)
            torch.manual_seed(99)
            state = torch.get_rng_state()
            assert torch.equal(self.draw(masker, grid).hidden, first.hidden)
            assert torch.equal(torch.get_rng_state(), state), "global random state is left alone"

    def test_rows_do_not_depend_on_their_neighbours(self, name, grid):
        """Masks are the same however a batch is spread over processes."""
        for masker, _ in self.cases(name, grid):
            whole = self.draw(masker, grid).hidden
            parts = [self.draw(masker, grid, first=first, rows=2).hidden for first in (0, 2, 4)]
            assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("modality", [IMAGE, VIDEO], ids=["image", "video"])
@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, n in ENTRIES if k in ("encoder", "decoder")])
def test_a_gradient_reaches_every_parameter(kind, name, modality):
    try:
        model = build_model(experiment(modality, **{kind: name}))
    except MmmaskError as error:
        pytest.skip(str(error))
    model({"a": samples(model.streams["a"].modality)}).loss.backward()
    found = {key: parameter.grad for key, parameter in model.named_parameters() if parameter.requires_grad}
    without = [key for key, gradient in found.items() if gradient is None or not gradient.any()]
    assert not without
    assert all(gradient.isfinite().all() for gradient in found.values())


@pytest.mark.parametrize("name", named("encoder"))
def test_an_encoder_gives_one_latent_per_token_when_nothing_is_hidden(name):
    model = build_model(experiment(encoder=name)).eval()
    with torch.no_grad():
        latents = model.encode({"a": samples(model.streams["a"].modality)})["a"]
    assert latents.values.shape[0] == 2
    assert latents.values.shape[2] == model.encoder.width
    assert latents.rows is None or latents.rows.shape == latents.values.shape[:2]


@pytest.mark.parametrize("name", named("encoder"))
def test_weights_are_a_function_of_the_seed(name):
    first = build_model(experiment(encoder=name)).state_dict()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    again = build_model(experiment(encoder=name)).state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert first.keys() == again.keys()
    assert all(torch.equal(value, again[key]) for key, value in first.items())


@pytest.mark.parametrize("name", named("loss"))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_loss_gives_an_error_per_token_in_float32_or_wider(name, dtype):
    modality = build("modality", config("modality", "image", size=64))
    try:
        loss = build("loss", config("loss", name))
        tokens = modality.tokenize(samples(modality, 3))
        index = torch.tensor([[0, 3, 5]] * 3)
        dim = loss.prediction_dim(modality.spec)
        target = loss.target(tokens, index)
    except MmmaskError as error:
        pytest.skip(str(error))
    assert target.shape[:2] == (3, 3)
    prediction = torch.rand(3, 3, dim, generator=generator()).to(dtype).requires_grad_()
    error = loss.error(prediction, target)
    assert error.shape == (3, 3)
    assert error.dtype in (torch.float32, torch.float64)
    assert (error >= 0).all()
    assert error.isfinite().all()
    error.sum().backward()
    assert prediction.grad is not None
    assert prediction.grad.abs().sum() > 0
    assert isinstance(loss.needs_statistics, bool)


@pytest.mark.parametrize("name", named("loss"))
def test_a_perfect_prediction_is_restored(name):
    """From the token's own statistics; a loss that predicts no content says so."""
    modality = build("modality", config("modality", "image", size=64))
    loss = build("loss", config("loss", name))
    try:
        loss.prediction_dim(modality.spec)
    except MmmaskError as error:
        pytest.skip(str(error))
    tokens = modality.tokenize(samples(modality, 2))
    index = torch.tensor([[1, 2, 9]] * 2)
    target = loss.target(tokens, index)
    try:
        restored = loss.restore(target, tokens, index, None)
    except NotImplementedError:
        return
    assert torch.allclose(restored, tokens.source(index), atol=1e-4)
    visible = torch.tensor([[0, 3, 4, 5]] * 2)
    assert loss.restore(target, tokens, index, visible).shape == restored.shape


@pytest.mark.parametrize("name", named("positions"))
@pytest.mark.parametrize("grid", [(16,), (4, 4), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("num_prefix", [0, 2])
def test_positions_fit_their_grid(name, grid, num_prefix):
    try:
        positions = build("positions", config("positions", name), width=48, grids=(grid,), num_prefix=num_prefix)
    except (MmmaskError, ValueError) as error:
        pytest.skip(str(error))
    added = positions(grid)
    tokens = torch.Size(grid).numel()
    assert added is None or added.shape == (tokens, 48)
    prefix = positions.prefix()
    assert prefix is None or prefix.shape == (num_prefix, 48)
    bias = positions.bias(grid, None)
    assert bias is None or bias.shape[-2:] == (tokens + num_prefix,) * 2


@pytest.fixture
def files(tmp_path):
    for number, name in enumerate(["b/2.jpg", "a/1.jpg", "a/0.JPG", "c.txt"]):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * 10)
    (tmp_path / "list.csv").write_text("files/b/2.jpg,two\nfiles/a/1.jpg,one\nfiles/a/0.JPG,one\n")
    return {
        "folder": str(tmp_path / "files"),
        "list": str(tmp_path / "list.csv"),
        "glob": str(tmp_path / "files/**/*.[jJ]*"),
    }


@pytest.mark.parametrize("name", named("source"))
def test_a_source_numbers_its_samples_the_same_every_time(name, files):
    if name not in files:
        pytest.skip("not a source of files; add it to the fixture `files` if it can be built from some")
    settings = config("source", name, path=files[name])
    source, again = (build("source", settings, extensions=(".jpg",)) for _ in range(2))
    assert len(source) == len(again) == 3
    read = [source.load(index).read() for index in range(3)]
    assert read == [again.load(index).read() for index in reversed(range(3))][::-1]
    assert len(set(read)) == 3
    assert len({source.describe(index) for index in range(3)}) == 3
    assert all(source.label(index) is None or isinstance(source.label(index), str) for index in range(3))
    copied = pickle.loads(pickle.dumps(source))
    assert [copied.load(index).read() for index in range(3)] == read


@pytest.mark.parametrize("name", named("format"))
def test_a_format_recognises_nothing_in_nothing(name):
    found = components().get("format", name)
    assert found.recognizes({}) is False
    assert found.recognizes({"weight": torch.zeros(3)}) is False

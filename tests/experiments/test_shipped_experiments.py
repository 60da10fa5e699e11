"""Every shipped experiment: short, valid, buildable, and able to take a training step at a small size."""

import re

import pytest
import torch

import mmmask
from mmmask.experiment.compose import parse_yaml, published_experiments, read_experiment
from mmmask.interfaces import build
from mmmask.model.cost import meta_model, parameters
from mmmask.profiling.bench import synthetic_batch
from mmmask.training.optimizer import parameter_groups, peak_learning_rate
from mmmask.training.schedule import learning_rate_schedule

SHIPPED = {name: found.path for name, found in published_experiments().items() if found.supplier == "mmmask"}
NAMES = list(SHIPPED)
OURS = tuple(name for name in NAMES if name.endswith("quickstart") or name.startswith("small/"))
"""Experiments that reproduce nobody's."""
MASKED = [
    name
    for name in NAMES
    if all(
        stream.get("objective", "masked") == "masked" for stream in read_experiment(name)["streams"].values() if stream
    )
]
"""Pretraining; tests of the others are in test_recipes.py."""
SMALL = (
    "model.encoder.width=32", "model.encoder.depth=2", "model.encoder.num_heads=2", "model.decoder.width=32",
    "model.decoder.depth=1", "model.decoder.num_heads=2",
)  # fmt: skip


def small(name):
    """The experiment's own choices with a model and samples that a test can afford."""
    overrides = list(SMALL)
    for stream, settings in mmmask.load_experiment(name).streams.items():
        modality = settings.modality
        patch = modality.patch_size[-1] if hasattr(modality, "patch_size") else None
        if hasattr(modality, "size") and patch:
            overrides.append(f"streams.{stream}.modality.size={4 * patch}")
        if hasattr(modality, "num_frames"):
            overrides.append(f"streams.{stream}.modality.num_frames={2 * modality.patch_size[0]}")
    return mmmask.load_experiment(name, overrides)


def test_there_are_experiments():
    assert len(NAMES) >= 5


@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_what_it_is(name):
    text = SHIPPED[name].read_text()
    lines = text.splitlines()
    assert len(lines) < 60
    assert lines[0].startswith("# ")
    assert len(lines[0]) < 120
    own = parse_yaml(text)["description"]  # not that of what it extends
    assert len(own) > 60
    if name not in OURS:
        assert re.search(r"\(\w+ et al\. \d{4}", own), "the paper"


def test_descriptions_differ():
    assert len({mmmask.load_experiment(name).description for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_users_can_derive_from_it(name, tmp_path):
    stream = next(iter(mmmask.load_experiment(name).streams))
    mine = tmp_path / "mine.yaml"
    mine.write_text(f"extends: {name}\ndescription: mine\nstreams: {{{stream}: {{batch_size: 96}}}}\n")
    derived = mmmask.load_experiment(mine, ["training.seed=3"])
    assert (derived.name, derived.description, derived.training.seed) == ("mine", "mine", 3)
    expected = mmmask.load_experiment(name, ["training.seed=3", "description=mine", f"streams.{stream}.batch_size=96"])
    assert derived.to_data() == expected.to_data()


@pytest.mark.parametrize("name", MASKED)
def test_it_is_valid_and_can_be_built(name):
    experiment = mmmask.load_experiment(name)
    assert all(stream.source is not None for stream in experiment.streams.values())
    model = meta_model(experiment)
    assert list(model.parts) == list(experiment.streams)


@pytest.mark.parametrize("name", MASKED)
def test_it_takes_a_training_step(name):
    experiment = small(name)
    model = mmmask.build_model(experiment)
    settings = experiment.training.optimizer
    optimizer = build("optimizer", settings).build(parameter_groups(model, settings))
    rate = learning_rate_schedule(experiment.training.schedule, peak_learning_rate(experiment), 100)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    batch = {stream: synthetic_batch(experiment, model, stream, 2) for stream in experiment.streams}
    for group in optimizer.param_groups:
        group["lr"] = rate(5)
    output = model(batch)
    output.loss.backward()
    assert output.loss.isfinite()
    missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert missing == []
    optimizer.step()
    after = model.state_dict()
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    masked_whole = {
        f"encoder.embeddings.{model.modalities[model.objective(target).targets[target].part].embedding}"
        for target in model.weights
        if output.streams[target].mask.masked.all()
    }
    still = [key for key in before if torch.equal(before[key], after[key])]
    assert [key for key in still if key.rpartition(".")[0] not in masked_whole] == []
    assert {name.partition("/")[0] for name in output.streams} == set(experiment.streams)


@pytest.mark.parametrize("path", SHIPPED.values(), ids=NAMES)
def test_numbers_are_numbers(path):
    """YAML 1.1 readers would take 1e-3 for a text; ours must not."""
    experiment = mmmask.load_experiment(str(path))
    assert isinstance(peak_learning_rate(experiment), float)


# (encoder, whole model), and what is published of it, in millions, with what is counted beyond these parameters: fixed
# tables of positions, or the classifier of 400 classes
PARAMETERS = {
    "convmae/conv_vit_base": (88_782_208, 114_790_528),  # paper: 88
    "mae/vit_base": (85_647_360, 111_655_680),  # timm's hub: 85.8, with 0.15 of positions; transformers: 111.9
    "mae/vit_base_mask_tokens": (85_648_128, 111_655_936),
    "mae/vit_large": (303_099_904, 329_239_296),  # timm's hub: 303.3
    "mae/vit_huge": (630_435_840, 656_613_964),  # timm's hub: 630.8, with 0.33 of positions
    "mae_st/vit_large": (304_096_256, 317_731_584),  # PySlowFast: 304
    "mae_st/vit_huge": (631_527_680, 645_232_460),  # PySlowFast: 632
    "multimae/vit_base": (86_638_912, 97_917_072),  # counted by hand from the sizes of the layers
    "omnimae/vit_base": (86_236_416, 94_217_856),  # official: 94,217,856
    "omnimae/vit_base_released": (86_236_416, 94_222_464),  # with biases in the decoder
    "omnimae/vit_large": (303_885_312, 317_803_520),  # official: 317,803,520
    "omnimae/vit_huge": (631_187_200, 657_655_448),  # official: 657,655,448
    "simmim/vit_base": (85_666_128, 86_256_720),
    "simmim/swin_base": (86_725_304, 89_874_104),  # Swin-B: 88 with its classifier; SimMIM's on the hub: 89.9
    "videomae/vit_small": (21_879_936, 24_029_376),  # paper: 22
    "videomae/vit_base": (86_227_200, 94_210_944),  # paper: 87, with 0.3 of the classifier
    "videomae/vit_large": (303_860_736, 342_996_992),  # paper: 305, with 0.4
    "videomae/vit_huge": (631_607_040, 692_487_296),  # paper: 633, with 0.5
    "videomaev2/vit_base": (86_227_200, 94_210_944),  # hub: 86.2
    "videomaev2/vit_giant": (1_011_610_752, 1_025_543_960),  # hub: 1 B
}


@pytest.mark.parametrize("name", [name for name in MASKED if name not in OURS])
def test_parameter_counts_at_full_size(name):
    counts = parameters(meta_model(mmmask.load_experiment(name)))
    same = re.sub(r"_(\d+_epochs|images_only|videos_only)$", "", name)
    assert (counts["encoder"], counts["total"]) == PARAMETERS[same]


@pytest.mark.parametrize(
    ("name", "stream", "tokens", "visible"),
    [
        ("convmae/conv_vit_base", "images", 196, 49),
        ("mae/vit_base", "images", 196, 49),
        ("mae/vit_huge", "images", 256, 64),
        ("mae_st/vit_large", "videos", 1568, 156),
        ("videomae/vit_base", "videos", 1568, 160),
        ("videomaev2/vit_giant", "videos", 2048, 208),
        ("simmim/vit_base", "images", 196, 196 - 4 * 30),
        ("simmim/swin_base", "images", 36, 14),
        ("omnimae/vit_base", "images", 196, 20),
        ("omnimae/vit_base", "videos", 1568, 79),
        ("omnimae/vit_base_released", "images", 196, 49),
        ("omnimae/vit_base_released", "videos", 1568, 157),
        ("omnimae/vit_large", "videos", 1568, 79),
        ("omnimae/vit_huge", "images", 256, 26),
        ("omnimae/vit_huge", "videos", 2048, 103),
    ],
)
def test_published_token_counts(name, stream, tokens, visible):
    model = meta_model(mmmask.load_experiment(name))
    modality, masker = model.modalities[stream], model.objective(stream).masker_of[stream]
    grid = modality.grid(modality.sample_shape)
    assert torch.Size(grid).numel() == tokens
    assert tokens - masker.num_masked(grid, 0) == visible


def test_the_released_omnimae_mixes_as_its_epochs_do():
    experiment = mmmask.load_experiment("omnimae/vit_base_released")
    weights = {name: stream.sampling_weight for name, stream in experiment.streams.items()}
    assert weights == {"images": 626, "videos": 82}
    assert experiment.training.mixing == "alternate"
    assert experiment.training.schedule.progress == "fixed"


@pytest.mark.parametrize("size", ["base", "large", "huge"])
@pytest.mark.parametrize("epochs", [800, 1600])
def test_the_paper_of_omnimae_pretrains_so_long_at_these_ratios(size, epochs):
    experiment = mmmask.load_experiment(f"omnimae/vit_{size}_{epochs}_epochs")
    assert experiment.training.steps == epochs * (626 + 82)
    assert experiment.training.mixing == "alternate"
    assert {name: stream.masker.mask_ratio for name, stream in experiment.streams.items()} == {
        "images": 0.9,
        "videos": 0.95,
    }
    plain = mmmask.load_experiment(f"omnimae/vit_{size}")
    assert experiment.model == plain.model
    assert {name: s.modality for name, s in experiment.streams.items()} == {
        name: s.modality for name, s in plain.streams.items()
    }
    released = mmmask.load_experiment("omnimae/vit_base_released").training
    assert experiment.training.optimizer == released.optimizer
    assert experiment.training.schedule == released.schedule


@pytest.mark.parametrize(("stream", "steps"), [("images", 626 * 800), ("videos", 82 * 800)])
def test_omnimaes_baselines_see_one_modality(stream, steps):
    alone = mmmask.load_experiment(f"omnimae/vit_base_{stream}_only")
    both = mmmask.load_experiment("omnimae/vit_base_800_epochs")
    assert alone.streams == {stream: both.streams[stream]}
    assert alone.training == both.training.model_copy(update={"steps": steps})

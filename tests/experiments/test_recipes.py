"""Recipes of transfer against the published numbers; what follows from them worked out by hand."""

import math
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch

import mmmask
from mmmask.data.streams import total_steps
from mmmask.experiment.compose import published_experiments, read_experiment
from mmmask.interfaces import PLAIN, View, build, write_part
from mmmask.interop import start_from
from mmmask.interop.published import published
from mmmask.model.dropping import path_factors
from mmmask.randomness import sample_noise
from mmmask.training.optimizer import parameter_groups, peak_learning_rate
from mmmask.training.schedule import learning_rate_schedule
from mmmask_samples import images, videos

IN1K, SSV2, K400, INAT18, PLACES = 1_281_167, 168_913, 240_000, 437_513, 1_803_460  # K400: about
STRONG, WEAK = (0.1, 0.8, 1.0), (0.0, 0.0, 0.0)  # smoothing, mixup, cutmix


@dataclass(frozen=True)
class Row:
    """Published numbers of a recipe; rates are those of its batch, a step shows `batch` samples or crops."""

    samples: int
    batch: int
    epochs: int
    peak: float
    warmup: float  # epochs
    weight_decay: float
    drop_path: float
    layer_decay: float | None = None
    head: float = 1.0  # factor of the head's rate
    start: float = 0.0
    end: float = 0.0
    fixed: bool = False  # the cosine sees the progress of the whole training
    steps: int | None = None  # an epoch
    soft: tuple[float, float, float] = STRONG
    rand_augment: tuple[float, int] | None = (9, 2)  # magnitude, operations
    erase: float | None = 0.25
    flip: bool = True
    head_std: float = 2e-5
    dropout: float = 0.0
    crop_share: float = 0.875
    views: tuple[int, int] = (1, 1)
    replicate: int = 1
    betas: tuple[float, float] | None = (0.9, 0.999)
    clip: float | None = None
    average: float | None = None
    precision: str = "bf16"


MAE = Row(IN1K, 1024, 100, 2e-3, 5, 0.05, 0.1, layer_decay=0.65, end=1e-6, steps=1251)
PROBE = Row(
    IN1K, 16384, 90, 6.4, 10, 0.0, 0.0, soft=WEAK, rand_augment=None, erase=None, head_std=0.01, betas=None, steps=78
)
SCRATCH = Row(
    IN1K, 4096, 300, 1.6e-3, 20, 0.3, 0.1, erase=None, betas=(0.9, 0.95), average=0.9999, steps=312
)  # fmt: skip
SIMMIM = replace(MAE, batch=2048, peak=5e-3, warmup=20, start=1e-6, fixed=True, clip=5.0, steps=625)
CLIPS = Row(
    K400,
    768,
    75,
    7.5e-4,
    5,
    0.05,
    0.1,
    layer_decay=0.75,
    rand_augment=(7, 4),
    crop_share=1.0,
    views=(5, 3),
    replicate=2,
)
OMNIMAE = Row(
    IN1K, 1024, 100, 4e-3, 5, 1e-4, 0.1, layer_decay=0.65, head=0.65, start=1e-6, end=1e-6, crop_share=1.0, steps=1251,
    precision="fp32",
)  # fmt: skip
OMNIMAE_CLIPS = replace(
    OMNIMAE, samples=SSV2, batch=256, peak=1e-3, warmup=12.5, weight_decay=0.05, layer_decay=0.75, head=0.75,
    rand_augment=(7, 4), flip=False, head_std=0.01, views=(5, 3), steps=659,
)  # fmt: skip
RECIPES = {
    "mae/finetune_vit_base": MAE,
    "mae/finetune_vit_large": replace(MAE, epochs=50, peak=4e-3, layer_decay=0.75, drop_path=0.2),
    "mae/finetune_vit_huge": replace(MAE, epochs=50, peak=4e-3, layer_decay=0.75, drop_path=0.3),
    "mae/partial_vit_large": replace(MAE, epochs=50, peak=4e-3, layer_decay=0.75, drop_path=0.2),
    "mae/linear_probe_vit_base": PROBE,
    "mae/linear_probe_vit_large": replace(PROBE, epochs=50),
    "mae/linear_probe_vit_huge": replace(PROBE, epochs=50),
    "mae/from_scratch_vit_base": SCRATCH,
    "mae/from_scratch_vit_large": replace(SCRATCH, epochs=200, drop_path=0.2),
    "mae/from_scratch_vit_huge": replace(SCRATCH, epochs=200, drop_path=0.2),
    "simmim/finetune_vit_base": SIMMIM,
    "simmim/finetune_swin_base": replace(SIMMIM, layer_decay=0.8, head_std=0.02),
    "videomae/finetune_k400_vit_base": CLIPS,
    "videomae/finetune_k400_vit_large": replace(CLIPS, batch=256, epochs=35, peak=1e-3),
    "videomae/finetune_k400_vit_huge": replace(
        CLIPS, batch=1024, epochs=50, peak=2e-3, end=2e-5, drop_path=0.2, dropout=0.5
    ),
    "videomae/finetune_ssv2_vit_base": replace(
        CLIPS, samples=SSV2, batch=1024, epochs=50, peak=1e-3, flip=False, views=(2, 3)
    ),
    "mae_st/finetune_k400_vit_large": replace(
        CLIPS, batch=256, epochs=50, peak=1.2e-3, drop_path=0.2, dropout=0.3, rand_augment=(7, 2), clip=5.0,
        views=(10, 3),
    ),
    "omnimae/finetune_in1k": OMNIMAE,
    "omnimae/finetune_ssv2": OMNIMAE_CLIPS,
    "omnimae/finetune_k400": CLIPS,
    "omnimae/finetune_inat18": replace(
        OMNIMAE, samples=INAT18, batch=768, epochs=360, peak=7.5e-5, weight_decay=0.05, layer_decay=None, head=1.0,
        erase=0.1, steps=569,
    ),
    "omnimae/finetune_places365": replace(OMNIMAE, samples=PLACES, steps=1761),
    "omnimae/finetune_epic100": replace(OMNIMAE_CLIPS, samples=67_217, steps=262),
}  # fmt: skip
SIZES = {"base": (12, 768), "large": (24, 1024), "huge": (32, 1280)}  # blocks, width


@dataclass(frozen=True)
class Loaded:
    experiment: mmmask.Experiment
    stream: str

    @property
    def settings(self):
        return self.experiment.streams[self.stream]

    def steps(self, row):
        return total_steps(self.experiment, {self.stream: row.samples})

    def model(self, device="meta", classes=1000):
        names = tuple(map(str, range(classes)))
        sets = self.settings.label_sets or ("label",)
        with torch.device(device):
            return mmmask.build_model(self.experiment, {self.stream: dict.fromkeys(sets, names)})


@cache
def load(name, *overrides):
    experiment = mmmask.load_experiment(name, overrides)
    (stream,) = experiment.streams
    return Loaded(experiment, stream)


def test_every_recipe_is_in_the_table():
    ours = {name for name, found in published_experiments().items() if found.supplier == "mmmask"}
    transfer = {
        name
        for name in ours
        if "/" in name and not name.startswith("small/")
        if any(
            (stream or {}).get("objective") == "classification" for stream in read_experiment(name)["streams"].values()
        )
    }
    assert transfer == RECIPES.keys()


@pytest.mark.parametrize("name", RECIPES)
def test_numbers(name):
    row, found = RECIPES[name], load(name)
    training, stream, augment = found.experiment.training, found.settings, found.settings.modality.augment
    assert (stream.batch_size, stream.replicate, training.epochs) == (
        row.batch,
        row.replicate,
        {found.stream: row.epochs},
    )
    assert (stream.label_smoothing, stream.mixup, stream.cutmix) == row.soft
    assert (stream.mix_probability, stream.switch_probability) == (1.0, 0.5)
    assert (stream.head_std, stream.dropout, stream.views) == (row.head_std, row.dropout, row.views)
    assert stream.modality.crop_share == row.crop_share
    assert (stream.source is None, stream.held_out is None) == (False, False)
    assert training.optimizer.clip_gradient == row.clip
    assert getattr(training.optimizer, "betas", None) == row.betas
    assert (training.average and training.average.decay) == row.average
    assert training.precision == row.precision
    kinds = {part.name: part for part in augment}
    order = ["crop"] + ["flip"] * row.flip + ["rand_augment"] * bool(row.rand_augment) + ["erase"] * bool(row.erase)
    assert list(kinds) == order
    assert (kinds["crop"].scale, kinds["crop"].ratio) == ((0.08, 1.0), (3 / 4, 4 / 3))
    if row.rand_augment:
        chosen = kinds["rand_augment"]
        assert (chosen.magnitude, chosen.num_ops) == row.rand_augment
        assert (chosen.magnitude_std, chosen.increasing, chosen.probability) == (0.5, True, 0.5)
        assert len(chosen.operations) == 15
    if row.erase:
        assert kinds["erase"].probability == row.erase
        assert kinds["erase"].count == 1


@pytest.mark.parametrize("name", RECIPES)
def test_weights_are_published_ones_of_pretraining(name):
    weights = load(name).experiment.model.weights
    if "from_scratch" in name:
        assert weights is None
        return
    known = getattr(weights, "from")
    assert known in published()
    system, size, stage = known.split("/")
    assert system.removeprefix("huggingface_") == name.split("/")[0]
    assert stage.startswith("pretrain")
    ending = name.rsplit("_", 1)[1]
    assert size.endswith(ending if ending in SIZES else "base")


def test_what_omnimae_erases_and_fills():
    *_, drawn, erase = load("omnimae/finetune_in1k").settings.modality.augment
    assert (erase.area, erase.ratio, erase.value, drawn.fill) == ((0.02, 0.33), (0.3, 3.3), 0.0, 0.5)
    *_, erase = load("omnimae/finetune_ssv2").settings.modality.augment
    assert (erase.area, erase.ratio[0], erase.value) == ((0.02, 1 / 3), 0.3, "pixel")


@pytest.mark.parametrize("name", RECIPES)
def test_steps_and_rates(name):
    """A linear warm-up, then a cosine: half way between its ends in the middle, unless it sees the whole progress."""
    row, found = RECIPES[name], load(name)
    training, steps = found.experiment.training, found.steps(row)
    if row.steps:
        assert row.steps * row.epochs <= steps <= (row.steps + 1) * row.epochs
    assert peak_learning_rate(found.experiment) == pytest.approx(row.peak)
    rate = learning_rate_schedule(training.schedule, peak_learning_rate(found.experiment), steps)
    share = row.warmup / row.epochs
    assert training.schedule.warmup == pytest.approx(share)
    assert rate(0) == pytest.approx(row.start)
    assert rate(share * steps / 2) == pytest.approx((row.start + row.peak) / 2)
    middle, low = (0.5 if row.fixed else (1 + share) / 2) * steps, row.end
    assert rate(middle) == pytest.approx((row.peak + low) / 2, rel=1e-4)
    begins = low + (row.peak - low) * (1 + math.cos(math.pi * share)) / 2 if row.fixed else row.peak
    assert rate((share + 1e-7) * steps) == pytest.approx(begins, rel=1e-5)
    assert rate(steps) == pytest.approx(low, abs=1e-12)


def groups_of(model, settings):
    """{parameter that trains: (factor of the rate, weight decay)}."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in parameter_groups(model, settings)
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", RECIPES)
def test_parameter_groups(name):
    row, found = RECIPES[name], load(name)
    model = found.model()
    groups = groups_of(model, found.experiment.training.optimizer)
    stages, ending = model.encoder.stages, name.rsplit("_", 1)[1]
    assert (len(stages), model.encoder.width) == (
        (24, 1024) if "swin" in name else SIZES[ending if ending in SIZES else "base"]
    )
    heads = {key: factors for key, factors in groups.items() if key.startswith("objectives.")}
    assert [scale for scale, _ in heads.values()] == pytest.approx([row.head] * len(heads))
    assert heads.keys() == {key for key, _ in model.named_parameters() if key.startswith("objectives.")}
    decay = row.layer_decay or 1.0
    own = {id(parameter): key for key, parameter in model.named_parameters()}
    trained = {"mae/partial_vit_large": 4}.get(name, 0 if "probe" in name else len(stages))
    for number, stage in enumerate(stages):
        for parameter in stage.parameters():
            key = own[id(parameter)]
            assert (key in groups) == (number >= len(stages) - trained)
            if key in groups:
                assert groups[key][0] == pytest.approx(row.head * decay ** (len(stages) - number))
    first = {key: factors for key, factors in groups.items() if ".embeddings." in key}
    assert bool(first) == (trained == len(stages))
    for scale, _ in first.values():
        assert scale == pytest.approx(row.head * decay ** (len(stages) + 1))
    for key, (_, weight_decay) in groups.items():
        if key.endswith(".bias") or "norm" in key:
            assert weight_decay == 0.0, key
        elif key.endswith(("fc1.weight", "qkv.weight")) or ".linear." in key or ".embeddings." in key:
            assert weight_decay == row.weight_decay, key


def test_factors_that_are_published():
    """Head, last block, patch embedding: OmniMAE's configuration multiplies the head's rate too."""
    for name, factors in {
        "omnimae/finetune_in1k": (0.65, 0.4225, 0.0024),
        "omnimae/finetune_ssv2": (0.75, 0.5625, 0.0178),
    }.items():
        found = load(name)
        groups = groups_of(found.model(), found.experiment.training.optimizer)
        rates = [groups[key][0] for key in groups if ".linear." in key or ".norm." in key and key[0] == "o"]
        rates += [
            groups["encoder.blocks.11.mlp.fc1.weight"][0],
            groups["encoder.embeddings.pixels_2x16x16x3.weight"][0],
        ]
        assert sorted({round(rate, 4) for rate in rates}, reverse=True) == list(factors)


@pytest.mark.parametrize("name", RECIPES)
def test_drop_path_grows_evenly_over_the_blocks(name):
    row, blocks = RECIPES[name], len(load(name).model().encoder.stages)
    rate = load(name).experiment.model.encoder.drop_path
    assert rate == row.drop_path
    factors = path_factors(sample_noise(0, 0, 20_000, torch.device("cpu")), 20_000, rate, blocks)
    if not rate:
        assert factors is None
        return
    dropped = (factors == 0).float().mean(dim=(1, 2))
    torch.testing.assert_close(dropped, torch.linspace(0, row.drop_path, blocks), atol=7e-3, rtol=0)


def ramp(height, width, frames=None):
    """Pixels whose first two channels are the row and the column, from 0 to 255."""
    rows, columns = torch.linspace(0, 255, height), torch.linspace(0, 255, width)
    content = torch.stack([*torch.meshgrid(rows, columns, indexing="ij"), torch.zeros(height, width)])
    content = content.round().to(torch.uint8)
    return content if frames is None else content.expand(frames, -1, -1, -1).contiguous()


def extent(prepared):
    """(top, bottom, left, right) of what is seen, as shares of the picture, from `ramp`."""
    picture = prepared.float() / 255
    picture = picture[:, 0] if picture.ndim == 4 else picture  # (channels, frames, ...)
    return [float(each) for each in (picture[0, 0, 0], picture[0, -1, 0], picture[1, 0, 0], picture[1, 0, -1])]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mae/finetune_vit_base", (0.0625, 0.9375, 0.28125, 0.71875)),  # 224 of 256 pixels, of 256 x 512
        ("simmim/finetune_swin_base", (0.0625, 0.9375, 0.28125, 0.71875)),
        ("omnimae/finetune_in1k", (0, 1, 0.25, 0.75)),
        ("omnimae/finetune_ssv2", (0, 1, 0.25, 0.75)),
    ],
)
def test_the_test_view(name, expected):
    modality = build("modality", load(name).settings.modality)
    frames = 16 if "videos" in load(name).stream else None
    seen = modality.preparation.prepare(ramp(256, 512, frames), PLAIN)
    assert seen.shape[-2:] == (224, 224)
    assert extent(seen) == pytest.approx(expected, abs=0.01)


def test_the_three_crops_of_a_clip():
    found = load("omnimae/finetune_ssv2")
    preparation = build("modality", found.settings.modality).preparation
    crops = found.settings.views[1]
    for number, (left, right) in enumerate([(0, 0.5), (0.25, 0.75), (0.5, 1)]):
        seen = preparation.prepare(ramp(256, 512, 16), View(index=number, of=crops))
        assert extent(seen) == pytest.approx((0, 1, left, right), abs=0.01)


@pytest.mark.parametrize("name", ["omnimae/finetune_in1k", "mae/linear_probe_vit_base", "omnimae/finetune_epic100"])
def test_targets(name):
    """A smoothing of 0.1 leaves the label 0.9 and spreads 0.1 over all classes."""
    small = ("model.encoder.size=tiny", "model.encoder.depth=1", "model.weights=null")
    found = load(name, *small)
    model = found.model("cpu", classes=10)
    labels = {key: torch.tensor([3, 7]) for key in model.objective(found.stream).classes[found.stream]}
    modality = model.modalities[found.stream]
    content = torch.zeros(2, *modality.sample_shape, dtype=torch.uint8)
    batch = mmmask.interfaces.Batch({found.stream: content}, labels)
    plan = model.eval().plan({found.stream: batch})["classification"]
    smoothing = RECIPES[name].soft[0]
    assert plan.targets[found.stream].keys() == set(found.settings.label_sets or ["label"])
    for target in plan.targets[found.stream].values():
        expected = torch.full((2, 10), smoothing / 10)
        expected[0, 3] += 1 - smoothing
        expected[1, 7] += 1 - smoothing
        torch.testing.assert_close(target.classes, expected)


def test_a_probe_freezes_the_encoder_and_normalises_the_cls_token():
    found = load("mae/linear_probe_vit_base")
    model = found.model()
    assert {key for key, part in model.named_parameters() if part.requires_grad} == {
        "objectives.classification.heads.images.linear.label.weight",
        "objectives.classification.heads.images.linear.label.bias",
    }
    norm = model.objective("images").heads["images"].norm
    assert (type(norm), norm.eps, norm.affine) == (torch.nn.BatchNorm1d, 1e-6, False)
    assert found.settings.pool.name == "prefix"
    assert found.experiment.training.optimizer.name == "lars"


def test_stand_ins_say_so():
    for name in RECIPES:
        path = published_experiments()[name].path
        is_stand_in = name.rsplit("_", 1)[1] in ("k400", "inat18", "places365", "epic100")
        assert path.read_text().startswith("# Stand-in: ") == is_stand_in
        assert load(name).experiment.description.startswith("A stand-in: ") == is_stand_in


def test_epic_is_ssv2_with_verbs_and_nouns():
    stand_in, origin = load("omnimae/finetune_epic100").experiment, load("omnimae/finetune_ssv2").experiment
    assert (stand_in.model, stand_in.training) == (origin.model, origin.training)
    other = ("source", "held_out", "label_sets")
    ours, theirs = (each.streams["videos"].model_dump(exclude=set(other)) for each in (stand_in, origin))
    assert ours.pop("modality") == theirs.pop("modality") | {"max_frames": 1_000_000}  # an hour and more of video
    assert ours == theirs
    source = stand_in.streams["videos"].source
    assert source.labels == {"verb": "verb_class", "noun": "noun_class"}
    assert source.classes == {"verb": 97, "noun": 300}
    assert (source.start, source.end) == ("start_timestamp", "stop_timestamp")


# of a recipe's data set, {file: what it holds, as it is handed out}; the first sample's file and labels; the classes
DATA_SETS = {
    "omnimae/finetune_ssv2": (
        {
            "data/ssv2/labels/train.json": '[{"id": "7", "label": "holding a cup", "template": "Holding [something]", '
            '"placeholders": ["a cup"]}]',
            "data/ssv2/labels/labels.json": '{"Dropping something": "0", "Holding something": "1"}',
        },
        "data/ssv2/20bn-something-something-v2/7.webm",
        {"label": "Holding something"},
        {"label": 2},
    ),
    "omnimae/finetune_inat18": (
        {
            "data/inat18/train2018.json": '{"images": [{"id": 5, "file_name": "train_val2018/Aves/2761/a.jpg"}], '
            '"annotations": [{"id": 1, "image_id": 5, "category_id": 2761}], '
            '"categories": [{"id": 2761, "name": "2761", "supercategory": "Aves"}]}'
        },
        "data/inat18/train_val2018/Aves/2761/a.jpg",
        {"label": "2761"},
        {"label": 8142},
    ),
    "omnimae/finetune_places365": (
        {"data/places365/places365_train_standard.txt": "/a/airfield/00000001.jpg 0\n/z/zen_garden/00000002.jpg 364\n"},
        "data/places365/data_large/a/airfield/00000001.jpg",
        {"label": "0"},
        {"label": 365},
    ),
    "omnimae/finetune_epic100": (
        {
            "data/epic100/EPIC_100_train.csv": "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,"
            "verb_class,noun_class\nP01_01_0,P01,P01_01,00:01:00.14,00:01:03.37,3,299\n"
        },
        "data/epic100/EPIC-KITCHENS/P01/videos/P01_01.MP4, 60.14 to 63.37 s",
        {"verb": "3", "noun": "299"},
        {"verb": 97, "noun": 300},
    ),
}


@pytest.mark.parametrize("name", DATA_SETS)
def test_data_sets_are_read_as_they_are_handed_out(name, tmp_path, monkeypatch):
    files, first, labels, classes = DATA_SETS[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.chdir(tmp_path)
    source = build("source", load(name).settings.source, extensions=(".jpg", ".webm", ".mp4"))
    assert (source.describe(0), source.labels(0)) == (first, labels)
    assert {key: len(found) for key, found in source.classes.items()} == classes


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """Folders of labelled pictures and clips: {stream: {"source": ..., "held_out": ...}}."""
    folder = tmp_path_factory.mktemp("labelled")
    found = {}
    for module in (images, videos):
        part = replace(module.PART, counts={"train": 2, "held_out": 1})
        write_part(part, folder, 0, lambda line: None)
        found[part.name] = {"source": folder / part.name / "train", "held_out": folder / part.name / "held_out"}
    return found


SMALL = (
    "model.encoder.size=null", "model.encoder.width=32", "model.encoder.depth=2", "model.encoder.num_heads=2",
    "training.epochs=null", "training.steps=2", "training.precision=fp32", "training.checkpoint.every=2",
    "data.workers=0",
)  # fmt: skip


def small(name, folders, *overrides):
    """The recipe with a model, samples and a source that a test can afford; two processes' worth of pairs."""
    stream = load(name).stream
    patch = load(name).settings.modality.patch_size
    key = f"streams.{stream}."
    smaller = [*SMALL, f"{key}modality.size={2 * patch[-1]}", f"{key}batch_size={4 * load(name).settings.replicate}"]
    if stream == "videos":
        smaller += [f"{key}modality.num_frames=4", f"{key}modality.short_side=null"]
    sources = [f"{key}{part}={{name: folder, path: '{path}'}}" for part, path in folders[stream].items()]
    return mmmask.load_experiment(name, [*smaller, *sources, *overrides])


@pytest.mark.parametrize(
    "name", ["omnimae/finetune_in1k", "mae/linear_probe_vit_base", "videomae/finetune_k400_vit_base"]
)
def test_it_trains(name, pictures, tmp_path):
    experiment = small(name, pictures, "model.weights=null")
    run = mmmask.train(experiment, tmp_path / "run", device="cpu")
    assert run.outcome == "finished"
    (stream,) = experiment.streams
    classes = run.model.objective(stream).classes[stream]["label"]
    assert len(classes) >= 3
    # targets of a head that is nearly zero: every class is as likely
    assert run.metrics[0]["loss"] == pytest.approx(math.log(len(classes)), rel=0.05)
    fresh = mmmask.build_model(experiment, {stream: {"label": classes}})
    before, after = dict(fresh.named_parameters()), dict(run.model.named_parameters())
    assert [key for key, weight in before.items() if torch.equal(weight, after[key])] == [
        key for key, weight in before.items() if not weight.requires_grad
    ]


def test_a_recipe_starts_from_the_pretraining_it_belongs_to(pictures, tmp_path):
    """OmniMAE: joint pretraining, then recipes of both streams; the encoder's norm is left, the pooled one is new."""
    sizes = ("size=32", "size=32, num_frames: 4, short_side: null")
    overrides = [*SMALL, "model.decoder={width: 32, depth: 1, num_heads: 2}", "training.steps=1"]
    for stream, size in zip(("images", "videos"), sizes, strict=True):
        overrides += [f"streams.{stream}.modality={{{size.replace('=', ': ')}}}", f"streams.{stream}.batch_size=4"]
        overrides += [f"streams.{stream}.source={{name: folder, path: '{pictures[stream]['source']}'}}"]
    pretrained = mmmask.train(
        mmmask.load_experiment("omnimae/vit_base", overrides), tmp_path / "pretrained", device="cpu"
    )
    for name in ("omnimae/finetune_in1k", "omnimae/finetune_k400"):
        experiment = small(name, pictures, f"model.weights={tmp_path / 'pretrained'}", "training.steps=1")
        run = mmmask.train(experiment, tmp_path / name, device="cpu")
        weights, theirs = run.model.encoder.state_dict(), pretrained.model.encoder.state_dict()
        assert theirs.keys() - weights.keys() == {"norm.weight", "norm.bias"}
        for key, tensor in weights.items():  # one step at the lowest rate away
            torch.testing.assert_close(tensor, theirs[key], rtol=0, atol=1e-5)


SMALLER = {
    "vit": ("model.encoder.size=null", "model.encoder.width=32", "model.encoder.depth=2", "model.encoder.num_heads=2"),
    "swin": ("model.encoder.width=64", "model.encoder.depths=[1, 1, 2, 1]", "model.encoder.num_heads=8"),
}
DECODER = ("model.decoder.width=32", "model.decoder.depth=1", "model.decoder.num_heads=2")


@pytest.mark.parametrize(
    ("name", "pretraining"),
    [
        ("mae/finetune_vit_base", "mae/vit_base"),
        ("mae/linear_probe_vit_base", "mae/vit_base"),
        ("mae_st/finetune_k400_vit_large", "mae_st/vit_large"),
        ("videomae/finetune_ssv2_vit_base", "videomae/vit_base"),
        ("simmim/finetune_vit_base", "simmim/vit_base"),
        ("simmim/finetune_swin_base", "simmim/swin_base"),
    ],
)
def test_an_encoder_takes_all_its_weights_from_its_pretraining(name, pretraining, tmp_path):
    """At the published sizes of samples: positions become learned ones, each block's own, or of other windows."""
    sizes = SMALLER["swin" if "swin" in name else "vit"]
    settings = mmmask.load_experiment(pretraining).model.decoder
    source = mmmask.build_model(
        mmmask.load_experiment(pretraining, [*sizes, *(DECODER if settings.name == "transformer" else ())])
    )
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    mmmask.interop.save(source, tmp_path / "pretrained.safetensors")
    experiment = mmmask.load_experiment(name, sizes)
    (stream,) = experiment.streams
    model = mmmask.build_model(experiment, {stream: {"label": ("x", "y")}})
    report = start_from(model, tmp_path / "pretrained.safetensors")
    assert [key for key in report.missing if key.startswith("encoder.")] == []
    left = {key for key in report.unused if key.startswith("encoder.")}
    pooled_norm = {"encoder.norm.weight", "encoder.norm.bias"} if experiment.streams[stream].norm == "layer" else set()
    assert left - {"encoder.mask_token"} == pooled_norm
    if name == "simmim/finetune_vit_base":
        for block in model.encoder.positions["pixels_16x16x3"]:
            assert torch.equal(block.table, source.encoder.positions["pixels_16x16x3"].table)
    if name == "mae/finetune_vit_base":  # fixed positions that now learn, and add nothing to the cls token at first
        learned, fixed = (part.encoder.positions["pixels_16x16x3"] for part in (model, source))
        assert torch.equal(learned.table, fixed((14, 14)))
        assert not learned.prefix_table.any()


def test_segments_of_videos_train_a_verb_and_a_noun(pictures, tmp_path):
    """EPIC's recipe: two heads, and targets of both sets."""
    root, table = pictures["videos"]["source"], tmp_path / "segments.csv"
    files = sorted(path.relative_to(root) for path in root.rglob("*.mp4"))[:8]
    rows = [f"{path},00:00:00.10,00:00:00.90,{number % 97},{299 - number}" for number, path in enumerate(files)]
    table.write_text("\n".join(["path,start_timestamp,stop_timestamp,verb_class,noun_class", *rows]))
    source = f"streams.videos.source={{path: '{table}', root: '{root}', file: path}}"
    changes = ("model.weights=null", source, "streams.videos.held_out=null")
    run = mmmask.train(small("omnimae/finetune_epic100", {"videos": {}}, *changes), tmp_path / "run", device="cpu")
    classes = run.model.objective("videos").classes["videos"]
    assert {label_set: len(names) for label_set, names in classes.items()} == {"verb": 97, "noun": 300}
    assert run.metrics[0]["loss"] == pytest.approx(math.log(97) + math.log(300), rel=0.05)

"""Experiments: every mistake with its key path, all at once; what is valid survives a round trip."""

from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt, ValidationError, field_validator
from pydantic_core import PydanticCustomError

import mmmask
from mmmask.components import components
from mmmask.experiment import ExperimentError, experiment_from_data, load_experiment
from mmmask.experiment.compose import parse_yaml, published_experiments
from mmmask.interfaces import Masker
from mmmask.interfaces.component import StrictModel, problems_of, validate_strictly
from mmmask_registry import MmmaskError


@pytest.fixture
def problems(signals):
    """The problems of the signal experiment with keys set to other values (or taken out, with `...`)."""

    def find(**changes):
        data = signals.signal_data()
        for path, value in changes.items():
            *parents, last = path.split("__")
            block = data
            for key in parents:
                block = block[key]
            if value is ...:
                del block[last]
            else:
                block[last] = value
        with pytest.raises(ExperimentError) as raised:
            experiment_from_data(data, "mine.yaml")
        assert str(raised.value) == "\n".join(f"mine.yaml: {problem}" for problem in raised.value.problems)
        assert isinstance(raised.value, MmmaskError)
        return raised.value.problems

    return find


def test_all_problems_come_at_once_with_their_key_paths(problems):
    found = problems(
        modle={},
        streams__long__masker={"name": "tubee"},
        streams__short__masker={"name": "random", "mask_rato": 0.5},
        streams__short__batch_size="8",
        streams__short__loss=...,
        model__encoder__positions={"name": "sinus"},
        model__decoder={"depth": 2},
        training__optimiser={},
        training__optimizer__learning_rate=-1,
        training__precision="fp8",
        training__log__evry=3,
    )
    # each up to the names that are known, which grow with every component
    starts = [
        "model.decoder: expected the name of a decoder and its settings, as {name: ..., ...}. Known: ",
        "model.encoder.positions.name: no positions is named 'sinus'.",
        "modle: unknown key. Did you mean 'model'? Known: description, model, streams, training, data",
        "streams.long.masker.name: no masker is named 'tubee'. Did you mean 'tube'? Known: ",
        "streams.short.batch_size: should be a valid integer, not '8'",
        "streams.short.loss: required, and not given",
        "streams.short.masker.mask_rato: unknown key. Did you mean 'mask_ratio'? Known: name, mask_ratio, round_down",
        "training.log.evry: unknown key. Did you mean 'every'? Known: every, reconstruct_every, tensorboard",
        "training.optimiser: unknown key. Did you mean 'optimizer'? Known: steps, epochs, mixing, accumulate, ",
        "training.optimizer.learning_rate: should be greater than 0, not -1",
        "training.precision: should be 'fp32', 'bf16' or 'fp16', not 'fp8'",
    ]
    for problem, start in zip(sorted(found), starts, strict=True):
        assert problem.startswith(start)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("streams", {}, "streams: dictionary should have at least 1 item"),
        ("streams", None, "streams: should be an object, not None"),
        ("streams__long", 3, "streams.long: should be an object, not 3"),
        ("streams__long__masker", 3, "streams.long.masker: expected the name of a masker and its settings"),
        ("streams__long__masker", {"name": 3}, "streams.long.masker: expected the name of a masker"),
        ("streams__long__masker", None, "streams.long.masker: required, and not given"),
        ("streams__long__masker__mask_ratio", 1.5, "streams.long.masker.mask_ratio: should be less than or equal to 1"),
        ("streams__long__masker__mask_ratio", -0.1, "streams.long.masker.mask_ratio: should be greater than or equal"),
        ("streams__long__masker__mask_ratio", "0.5", "streams.long.masker.mask_ratio: should be a valid number"),
        ("streams__long__masker__mask_ratio", True, "streams.long.masker.mask_ratio: should be a valid number"),
        ("streams__long__masker__mask_ratio", float("nan"), "streams.long.masker.mask_ratio: should be"),
        ("streams__long__decoder", "a.b", "streams.long.decoder: string should match pattern"),
        ("streams__long__source", {"name": "folder"}, "streams.long.source.path: required, and not given"),
        ("streams__long__modality", {"name": "image", "sizee": 64}, "streams.long.modality.sizee: unknown key. Did"),
        (
            "streams__long__modality",
            {"name": "image", "augment": ["flip", {"name": "crop", "scal": [0.5, 1.0]}]},
            "streams.long.modality.augment.1.scal: unknown key. Did you mean 'scale'?",
        ),
        (
            "streams__long__modality",
            {"name": "image", "augment": ["flop"]},
            "streams.long.modality.augment.0.name: no augmentation is named 'flop'. Did you mean 'flip'?",
        ),
        ("streams__long__modality", {"name": "image", "size": 60}, "streams.long.modality: size (60, 60) is not a"),
        ("streams__long__loss__name", "pixel", "streams.long.loss.name: no loss is named 'pixel'. Did you mean 'pix"),
        ("model", None, "model: should be an object, not None"),
        ("model__encoder__num_heads", 5, "model.encoder: num_heads (5) must divide width (24)"),
        ("model__decoder__num_heads", 5, "model.decoder: num_heads (5) must divide width (16)"),
        ("model__encoder__size", "bse", "model.encoder.size: should be 'tiny', 'small', 'base', 'large', 'huge' or"),
        ("training__steps", 0, "training.steps: should be greater than 0, not 0"),
        ("training__steps", 1.5, "training.steps: should be a valid integer, not 1.5"),
        ("training__steps", True, "training.steps: should be a valid integer, not True"),
        ("training__seed", -1, "training.seed: should be greater than or equal to 0, not -1"),
        ("training__mixing", "alternat", "training.mixing: should be 'joint', 'alternate' or 'budget', not 'alternat'"),
        ("training__optimizer__betas", [0.9], "training.optimizer.betas.1: required, and not given"),
        ("training__optimizer__learning_rate", float("inf"), "training.optimizer.learning_rate: should be a finite"),
        ("description", 3, "description: should be a valid string, not 3"),
    ],
)
def test_wrong_values(problems, key, value, problem):
    (found,) = problems(**{key: value})
    assert found.startswith(problem)


class Particular(Masker):
    """Its settings raise a kind of error of their own."""

    class Config(Masker.Config):
        cells: int = 0

        @field_validator("cells")
        @classmethod
        def even(cls, cells):
            raise PydanticCustomError("odd_cells", "should be {parity}, as {{cells}} are pairs", {"parity": "even"})

    def scores(self, context): ...
    def num_masked(self, grid, step): ...


def test_an_error_of_a_plugins_own_kind_is_said_as_the_plugin_says_it(problems):
    mmmask.register("masker", "particular", Particular)
    try:
        found = problems(streams__long__masker={"name": "particular", "cells": 3}, modle={})
    finally:
        components().registry("masker").unregister("particular")
    unknown, particular = sorted(found)
    assert unknown.startswith("modle: unknown key.")
    assert particular.startswith("streams.long.masker.cells: should be even, as {")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"streams__long__replicate": 3},
            "streams.long.batch_size: 8 does not divide by accumulate x replicate (1 x 3)",
        ),
        (
            {"streams__long__replicate": 2, "streams__short__batch_size": 12, "training__accumulate": 8},
            "streams.long.batch_size: 8 does not divide by accumulate x replicate (8 x 2)",
        ),
        ({"training__epochs": {"long": 2}}, "training.epochs: give either steps or epochs"),
        (
            {"training__epochs": {"lng": 2}, "training__steps": ...},
            "training.epochs: expected one stream's name, of long, short",
        ),
        (
            {"training__epochs": {"long": 2, "short": 2}, "training__steps": ...},
            "training.epochs: expected one stream's name, of long, short",
        ),
        (
            {"training__epochs": {"long": -5}, "training__steps": ...},
            "training.epochs.long: should be greater than 0, not -5",
        ),
        (
            {"training__epochs": {"long": 0}, "training__steps": ...},
            "training.epochs.long: should be greater than 0, not 0",
        ),
        ({"training__optimizer__betas": [0.9, 1.0]}, "training.optimizer.betas: each must be in [0, 1)"),
    ],
)
def test_what_each_key_allows_and_the_keys_together_do_not(problems, changes, problem):
    assert any(found.startswith(problem) for found in problems(**changes))


def test_conflicts_come_all_at_once(problems):
    found = problems(
        streams__long__replicate=3, streams__short__replicate=5, training__epochs={"long": 2}
    )  # fmt: skip
    assert [problem.partition(":")[0] for problem in found] == [
        "streams.long.batch_size",
        "streams.short.batch_size",
        "training.epochs",
    ]


def test_conflicts_come_together_with_wrong_values(problems):
    found = problems(
        modle={},
        streams__long__replicate=3,
        streams__short__masker="tubee",
        streams__short__batch_size="x",
        training__epochs={"lng": 2},
        training__optimizer={"betas": [0.9, 1.0]},
        **{"streams__two words": 3},
    )
    assert sorted(problem.partition(":")[0] for problem in found) == [
        "modle",
        "streams.long.batch_size",
        "streams.short.batch_size",
        "streams.short.masker.name",
        "streams.two words",
        "streams.two words",
        "training.epochs",
        "training.epochs",
        "training.optimizer.betas",
    ]


def test_a_stream_that_is_not_there_to_take_out_comes_with_the_rest(signals):
    with pytest.raises(ExperimentError) as raised:
        experiment_from_data(signals.signal_data(), overrides=["streams.lng=null", "training.steps=0"])
    first, second = raised.value.problems
    assert first.startswith("streams.lng: no stream to take out. Did you mean 'long'?")
    assert second.startswith("training.steps: should be greater than 0")


@pytest.mark.parametrize("broken", [None, 3, [], {"long": None}, {"long": 3}, {"long": {"batch_size": None}}, {3: {}}])
@pytest.mark.parametrize("key", ["streams", "training"])
def test_conflicts_are_no_trouble_where_everything_is_wrong(problems, key, broken):
    assert problems(**{key: broken, "modle": {}})


def test_a_streams_name_is_a_plain_word(signals):
    data = signals.signal_data()
    data["streams"]["two words"] = data["streams"].pop("long")
    with pytest.raises(ExperimentError, match="streams.two words: a stream's name must be a plain word"):
        experiment_from_data(data)


@pytest.mark.parametrize("name", ["masker", "source", "head", "model", "streams", "batch_size"])
def test_a_stream_may_be_called_like_a_setting(signals, name):
    data = signals.signal_data()
    data["streams"][name] = data["streams"].pop("long")
    assert name in experiment_from_data(data).streams
    data["streams"][name]["maskr"] = 1
    data["streams"][name]["masker"]["mask_rato"] = 1
    with pytest.raises(ExperimentError) as raised:
        experiment_from_data(data)
    first, second = sorted(raised.value.problems)
    assert first.startswith(f"streams.{name}.masker.mask_rato: unknown key. Did you mean 'mask_ratio'?")
    assert second.startswith(f"streams.{name}.maskr: unknown key. Did you mean 'masker'?")


def test_an_experiment_survives_a_round_trip(signals):
    experiment = experiment_from_data(signals.signal_data())
    again = experiment_from_data(parse_yaml(experiment.to_yaml()))
    assert again.to_data() == experiment.to_data()
    assert again == experiment
    assert again.to_yaml() == experiment.to_yaml()


@pytest.mark.parametrize("name", published_experiments())
def test_every_shipped_experiment_survives_a_round_trip(name):
    experiment = load_experiment(name)
    assert experiment.name == name
    again = experiment_from_data(parse_yaml(experiment.to_yaml()))
    assert again.to_data() == experiment.to_data()


def test_a_round_trip_keeps_what_yaml_might_mistake(signals):
    data = signals.signal_data()
    data["description"] = "off"
    data["streams"]["long"]["source"] = {"name": "folder", "path": "2026-01-31"}
    data["training"]["optimizer"] = {"learning_rate": 1e-7, "epsilon": 1e-8}
    experiment = experiment_from_data(data)
    again = experiment_from_data(parse_yaml(experiment.to_yaml()))
    assert again.to_data() == experiment.to_data()
    assert again.training.optimizer.learning_rate == 1e-7


def test_defaults_are_filled_in(signals):
    data = experiment_from_data(signals.signal_data()).to_data()
    assert data["streams"]["long"]["masker"] == {"name": "random", "mask_ratio": 0.75, "round_down": "masked"}
    assert data["streams"]["long"]["decoder_masker"] is None
    assert data["model"]["encoder"]["positions"] == {"name": "flat_sinusoid"}
    assert data["training"]["optimizer"]["betas"] == [0.9, 0.95]


def test_a_size_sets_the_numbers_that_are_not_given(signals):
    def encoder(**settings):
        data = signals.signal_data()
        data["model"]["encoder"] = {"name": "vit", **settings}
        return experiment_from_data(data).model.encoder

    large = encoder(size="large", depth=2)
    assert (large.width, large.depth, large.num_heads, large.mlp_ratio) == (1024, 2, 16, 4.0)
    giant = encoder(size="giant")
    assert (giant.width, giant.depth, giant.num_heads, int(giant.width * giant.mlp_ratio)) == (1408, 40, 16, 6144)
    huge = encoder(size="huge")
    assert (huge.width, huge.depth, huge.num_heads) == (1280, 32, 16)


def test_a_file_with_a_size_says_nothing_that_the_size_says(signals):
    """So that another size in a dumped file is another size."""
    data = signals.signal_data()
    data["model"]["encoder"] = {"name": "vit", "size": "giant", "depth": 2}
    dumped = experiment_from_data(data).to_data()
    assert dumped["model"]["encoder"] | {"size": "giant", "depth": 2} == dumped["model"]["encoder"]
    assert not {"width", "num_heads", "mlp_ratio"} & set(dumped["model"]["encoder"])
    small = experiment_from_data(dumped, overrides=["model.encoder.size=small"]).model.encoder
    assert (small.width, small.depth, small.num_heads, small.mlp_ratio) == (384, 2, 6, 4.0)
    giant = experiment_from_data(dumped, overrides=["model.encoder.depth=3"]).model.encoder
    assert (giant.width, giant.depth, giant.num_heads, giant.mlp_ratio) == (1408, 3, 16, 48 / 11)
    data["model"]["encoder"] = {"name": "vit", "size": "base"}
    dumped = experiment_from_data(data).to_data()
    again = experiment_from_data(dumped, overrides=["model.encoder.size=giant"]).model.encoder
    assert (again.width, again.depth, again.num_heads, again.mlp_ratio) == (1408, 40, 16, 48 / 11)


def test_a_file_without_a_size_says_every_number(signals):
    dumped = experiment_from_data(signals.signal_data()).to_data()["model"]["encoder"]
    assert (dumped["size"], dumped["width"], dumped["depth"], dumped["num_heads"]) == (None, 24, 2, 2)
    assert dumped["mlp_ratio"] == 4.0


def test_a_stream_is_taken_out_by_null(signals):
    experiment = experiment_from_data(signals.signal_data(), overrides=["streams.short=null"])
    assert list(experiment.streams) == ["long"]


def test_a_masker_in_short_and_another_name(signals):
    data = signals.signal_data()
    data["streams"]["long"]["masker"]["round_down"] = "visible"
    short = experiment_from_data(data, overrides=["streams.long.masker=tube"])
    long = experiment_from_data(data, overrides=["streams.long.masker.name=tube"])
    assert short.streams["long"].masker.model_dump() == {"name": "tube", "mask_ratio": 0.9, "round_down": "masked"}
    assert short == long


def test_settings_cannot_be_changed(signals):
    from pydantic import ValidationError

    experiment = experiment_from_data(signals.signal_data())
    with pytest.raises(ValidationError, match="frozen"):
        experiment.training.steps = 3


def test_an_experiment_takes_its_name_from_its_file(tmp_path, signals):
    assert experiment_from_data(signals.signal_data()).name == "experiment"
    path = tmp_path / "mine.yaml"
    path.write_text(experiment_from_data(signals.signal_data()).to_yaml())
    assert load_experiment(path).name == "mine"
    assert load_experiment(str(path), ["training.steps=9"]).training.steps == 9


class Unions(StrictModel):
    whole: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    share: Annotated[int, Field(gt=0)] | Annotated[float, Field(gt=0, lt=0.5)] | None = None
    names: str | tuple[str, ...] = ""
    word: Literal["a", "b"] | int = "a"
    each: tuple[PositiveInt | str, ...] = ()
    named: dict[str, PositiveInt | str] = {}


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("whole", [0, 1], "whole: expected a whole number of at least 1, or two of them; not [0, 1]"),
        ("share", 0.5, "share: expected a whole number of at least 1, or a number above 0 and below 0.5; not 0.5"),
        ("names", ["x", 3], "names: expected a text, or some of them; not ['x', 3]"),
        ("word", "c", "word: expected 'a' or 'b', or a whole number; not 'c'"),
        ("each", [1, "x", 0], "each.2: expected a whole number of at least 1, or a text; not 0"),
        ("named", {"k": None}, "named.k: expected a whole number of at least 1, or a text; not None"),
    ],
)
def test_a_union_has_one_problem_that_says_its_alternatives(setting, value, problem):
    with pytest.raises(ValidationError) as caught:
        validate_strictly(Unions, {setting: value})
    assert problems_of(caught.value) == [problem]

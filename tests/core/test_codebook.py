"""Ids of a codebook: nearest centroids, how they are made, and runs that have them."""

from pathlib import Path

import pytest
import torch

import mmmask
from mmmask import testing
from mmmask.builtins.losses.codebook import present_values, save_codebook
from mmmask.builtins.losses.k_means import nearest
from mmmask.experiment import experiment_from_data
from mmmask.interfaces import Tokens, TokenSpec, build
from mmmask.interop import load, save, start_from
from mmmask.testing.synthetic import chosen
from mmmask.training.codebook import k_means

RAW = {"name": "pixels", "normalize": "none"}


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def experiment(signals):
    """One stream, whose loss is a codebook of `of`."""

    def experiment(of=RAW, ids=8, change=lambda data: None, **training):
        data = signals.signal_data(**training)
        del data["streams"]["short"]
        data["streams"]["long"]["loss"] = {"name": "codebook", "path": "book.safetensors", "ids": ids, "of": of}
        change(data)
        return experiment_from_data(data)

    return experiment


def save_book(centroids, of):
    counts = torch.arange(len(centroids))
    save_codebook(Path("book.safetensors"), centroids, counts, chosen("loss", of))


def make(centroids, of=RAW):
    save_book(centroids, of)
    book = {"name": "codebook", "path": "book.safetensors", "ids": len(centroids), "of": of}
    return build("loss", chosen("loss", book))


def every(tokens):
    return torch.arange(tokens.content.shape[1]).expand(len(tokens.content), -1)


def test_the_target_is_the_nearest_centroid():
    generator = torch.Generator().manual_seed(0)
    spec, centroids = TokenSpec((2,), 1), torch.randn(5, 2, generator=generator)
    tokens = Tokens(torch.randn(3, 7, 2, generator=generator), (7,), spec)
    loss = make(centroids, RAW | {"unnormalize": False})
    found = loss.target(tokens, every(tokens))
    assert loss.prediction_dim(spec) == 5
    assert torch.equal(found.squeeze(-1), torch.cdist(tokens.content, centroids).argmin(-1))
    perfect = 99.0 * torch.nn.functional.one_hot(found.squeeze(-1), 5)
    assert loss.error(perfect, found).max() < 1e-3
    uniform = loss.error(torch.zeros(3, 7, 5, dtype=torch.bfloat16), found)
    torch.testing.assert_close(uniform, torch.full((3, 7), 5.0).log())
    restored = loss.restore(perfect, tokens, every(tokens), None)
    torch.testing.assert_close(restored, centroids[found.squeeze(-1)])


def test_missing_values_are_no_distance():
    spec, nan = TokenSpec((2,), 1, gaps=True), float("nan")
    loss = make(torch.tensor([[0.0, 0.0], [1.0, 9.0]]), RAW | {"unnormalize": False})
    tokens = Tokens(torch.tensor([[[0.9, nan], [0.9, 0.0], [nan, nan]]]), (3,), spec)
    found = loss.target(tokens, every(tokens))
    assert found.flatten().tolist() == [1, 0, 2]
    error = loss.error(torch.zeros(1, 3, 2), found)
    torch.testing.assert_close(error, torch.tensor([[2.0, 2.0, 1.0]]).log())


@pytest.mark.parametrize("gaps", [False, True])
def test_weights_beside_values_say_what_is_missing(gaps):
    values, present = present_values(torch.tensor([[0.5, 0.0, 1.0, 0.0]]), 2, gaps)
    assert values.tolist() == [[0.5, 0.0]]
    assert present is None if not gaps else present.tolist() == [[True, False]]


def test_the_baseline_is_how_often_each_id_is_seen():
    loss = make(torch.randn(3, 2))  # seen 0, 1 and 2 times
    mask = testing.synthetic.synthetic((4,), (2,), channels=1).mask(2)
    guess = loss.baseline(None, mask)
    torch.testing.assert_close(guess[0, 0].exp(), torch.tensor([1.0, 2.0, 3.0]) / 6)
    assert guess.shape == (*mask.predicted.shape, 3)


def test_ids_have_no_centroids():
    scene = testing.synthetic.synthetic((12,), (1,), vocab_size=11, channels=1)
    tokens = scene.tokens(2)
    with pytest.raises(mmmask.MmmaskError, match="targets that are ids already have no centroids"):
        make(torch.randn(5, 11), {"name": "cross_entropy"}).target(tokens, every(tokens))


@pytest.mark.parametrize("gaps", [False, True])
def test_k_means_finds_clusters_whatever_it_begins_with(gaps):
    generator = torch.Generator().manual_seed(0)
    centres = 10 * torch.randn(6, 4, generator=generator)
    values = centres.repeat_interleave(torch.tensor([400, 200, 90, 50, 40, 20]), 0)
    values = values + 0.1 * torch.randn(values.shape, generator=generator)
    present = torch.rand(values.shape, generator=generator) < 0.9 if gaps else None
    values = values if present is None else values * present
    # more ids than clusters, as Lloyd's algorithm may leave two clusters to one id
    centroids, counts, error = k_means(values, present, 12, seed=0)
    assert counts.sum() == len(values)
    assert error < 0.02
    assert torch.cdist(centres, centroids).amin(1).max() < 0.5
    again = k_means(values, present, 12, seed=0)
    assert torch.equal(again[0], centroids)
    assert not torch.equal(k_means(values, present, 12, seed=1)[0], centroids)
    assert torch.equal(nearest(values, present, centroids)[0].bincount(minlength=12), counts)


def test_fewer_kinds_of_tokens_than_ids():
    centroids, counts, error = k_means(torch.eye(3).repeat(20, 1), None, 5, seed=0)
    assert (counts > 0).sum() == 3
    assert error < 1e-6
    assert centroids.isfinite().all()


def test_a_run_learns_ids_and_opens_without_the_file(experiment, tmp_path):
    book = mmmask.write_codebook(experiment(), samples=20, seed=3)
    assert (book.centroids.shape, book.target) == ((8, 8), "long")
    assert (book.used, book.counts.sum()) == (8, 20 * 12)
    assert 1 < book.perplexity <= 8
    assert 0 < book.error < 0.3
    first = book.path.read_bytes()
    assert torch.equal(
        mmmask.write_codebook(experiment(), samples=20, seed=3, overwrite=True).centroids, book.centroids
    )
    assert book.path.read_bytes() == first
    run = mmmask.train(experiment(steps=200, optimizer={"learning_rate": 3e-3}), "run", device="cpu")
    before, after = run.evaluations[0], run.evaluations[-1]
    assert before["loss_baseline"] == after["loss_baseline"]
    assert after["loss"] < 0.95 * after["loss_baseline"]
    assert after["psnr"] > after["psnr_baseline"]
    save(run.model, "model.safetensors")
    book.path.unlink()
    samples = {"long": torch.randint(256, (4, 2, 64), dtype=torch.uint8)}
    expected = run.model(samples).loss
    assert mmmask.load_run("run").experiment.streams["long"].loss.dim == 8
    for model in (mmmask.load_run("run").model, load("model.safetensors").eval()):
        assert torch.equal(model.objective("long").loss_of["long"].centroids, book.centroids)
        torch.testing.assert_close(model(samples).loss, expected)


def test_weights_to_start_from_leave_the_centroids(experiment):
    mmmask.write_codebook(experiment())
    mmmask.train(experiment(steps=1), "run", device="cpu")
    centroids = mmmask.write_codebook(experiment(), seed=1, overwrite=True).centroids
    model = mmmask.build_model(experiment())
    report = start_from(model, "run")
    assert torch.equal(model.objective("long").loss_of["long"].centroids, centroids)
    assert report.missing["objectives.masked.learned_losses.long.centroids"] == "says what is predicted here"


def frozen(data):
    data["model"]["teacher"] = "first"


def test_ids_of_a_frozen_teacher(experiment, signals):
    latents = {"name": "latents", "stages": 2}
    mmmask.train(experiment(RAW, change=lambda data: data["streams"]["long"].update(loss=RAW)), "first", device="cpu")
    book = mmmask.write_codebook(experiment(latents, change=frozen))
    assert book.centroids.shape == (8, 24)
    run = mmmask.train(experiment(latents, change=frozen, steps=2), "run", device="cpu")
    assert not any(key.startswith("target_std") for key in run.metrics[-1])
    model = run.model
    samples = {"long": torch.randint(256, (4, 2, 64), dtype=torch.uint8)}
    (plan,) = model.plan(samples).values()
    objective = model.objective("long")
    ids = objective.expected(plan, "long").squeeze(-1)
    objective.loss_of["long"] = objective.loss_of["long"].of
    values = objective.expected(plan, "long")
    assert torch.equal(ids, torch.cdist(values, book.centroids).argmin(-1))
    with pytest.raises(mmmask.MmmaskError, match=r"^model\.teacher: a moving average has learned nothing yet"):
        mmmask.write_codebook(experiment(latents, change=lambda data: data["model"].update(teacher="ema")))
    with pytest.raises(mmmask.MmmaskError, match=r"'latents' is of a teacher's latents, and there is no teacher"):
        mmmask.write_codebook(experiment(latents), overwrite=True)


def test_ids_of_latents_keep_the_promises_of_losses():
    latents = {"name": "latents", "stages": 2}
    save_book(torch.randn(5, 16), latents)
    testing.check_loss("codebook", path="book.safetensors", ids=5, of=latents)


MISTAKES = {
    "there is no such file: `mmmask codebook EXPERIMENT` writes one": lambda: None,
    "it is no codebook, or damaged: `mmmask codebook EXPERIMENT` writes one": lambda: spoil(),
    'it has 9 ids, and `ids` says 8: `mmmask codebook EXPERIMENT` writes one with that many': lambda: make(
        torch.rand(9, 8)
    ),
    '"slices": null, "epsilon_inside": true}, and `of` says {': lambda: make(torch.rand(8, 8), {"name": "pixels"}),
    "centroids of 6 numbers, and targets of 'pixels' have 8 here: write one for this experiment": lambda: make(
        torch.rand(8, 6)
    ),
}  # fmt: skip


def spoil():
    Path("book.safetensors").write_bytes(b"no tensors")


@pytest.mark.parametrize("message", MISTAKES)
def test_a_codebook_that_cannot_be_used_is_refused_before_the_run(experiment, message, tmp_path):
    MISTAKES[message]()
    for use in (mmmask.build_model, lambda given: mmmask.train(given, "run", device="cpu")):
        with pytest.raises(mmmask.MmmaskError) as caught:
            use(experiment())
        assert str(caught.value).startswith("loss 'codebook': path: book.safetensors: ")
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "experiment.yaml").exists()


def test_settings_of_a_run_alone_are_not_enough_to_train(experiment):
    mmmask.write_codebook(experiment())
    told = experiment()
    spoil()
    with pytest.raises(mmmask.MmmaskError, match="it is no codebook"):
        mmmask.train(told, "run", device="cpu")


def test_what_no_codebook_is_made_of(experiment):
    def refuses(message, given, **options):
        with pytest.raises(mmmask.MmmaskError, match=message):
            mmmask.write_codebook(given, **options)

    refuses(r"streams\.long: 24 tokens of 2 samples are too few for 8 ids: take more samples, or at most 6 `ids`",
            experiment(), samples=2)  # fmt: skip
    refuses(
        "no stream has the loss codebook; such as",
        experiment(change=lambda data: data["streams"]["long"].update(loss=RAW)),
    )
    refuses("no target of the loss codebook is named 'short'. Known: long", experiment(), stream="short")
    mmmask.write_codebook(experiment())
    refuses("book.safetensors: there is a file already", experiment())

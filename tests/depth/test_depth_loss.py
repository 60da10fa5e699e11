"""Robust standardisation, against the official numbers and by hand."""

from pathlib import Path

import pytest
import torch

from mmmask.interfaces import Tokens, TokenSpec, patchify, unpatchify
from mmmask_depth.loss import DepthLoss
from mmmask_registry import MmmaskError

SPEC = TokenSpec((2,), 1, mean=(3.0,), std=(2.0,), range=(0.0, None), gaps=True)
EVERY = torch.arange(5).unsqueeze(0)


def make(**settings):
    return DepthLoss(DepthLoss.Config(name="depth", **settings))


def tokens_of(*numbers, spec=SPEC):
    content = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 2)
    return Tokens(content, (content.shape[1],), spec, valid=~content.isnan().all(-1))


@pytest.fixture(scope="module")
def official():
    return torch.load(Path(__file__).with_name("golden_depth.pt"), weights_only=True)


def test_the_target_is_the_official_one(official):
    spec = TokenSpec((16, 16), 1, gaps=True)
    tokens = Tokens(patchify(official["depth"], (16, 16)), (4, 4), spec)
    target, _ = make().target(tokens, torch.arange(16).expand(2, -1)).chunk(2, dim=-1)
    found = unpatchify(target, (4, 4), (16, 16)).flatten()[::4]
    torch.testing.assert_close(found, official["standardized"], atol=1e-6, rtol=1e-6)


def test_the_loss_is_the_official_one(official):
    spec = TokenSpec((16, 16), 1, gaps=True)
    tokens = Tokens(patchify(official["depth"], (16, 16)), (4, 4), spec)
    prediction = patchify(official["prediction"], (16, 16))
    every = torch.arange(16).expand(2, -1)
    error = make().error(prediction, make().target(tokens, every))
    mask = official["mask"]
    per_sample = (error * mask).sum(1) / mask.sum(1)
    assert float(per_sample.mean()) == pytest.approx(official["loss"], rel=1e-6)


def test_statistics_by_hand():
    # ranks 1 to 8 of ten: 2 to 9, mean 5.5, unbiased variance 6
    tokens = tokens_of(1000.0, 2, 3, 4, 5, 6, 7, 8, 9, -1000)
    values, weights = make().target(tokens, EVERY).chunk(2, dim=-1)
    assert values[0, 1].tolist() == pytest.approx([(3 - 5.5) / 6.000001**0.5, (4 - 5.5) / 6.000001**0.5])
    assert weights.unique().tolist() == [0.5]


def test_nothing_depends_on_missing_values():
    nan = float("nan")
    tokens = tokens_of(1000.0, 2, 3, 4, nan, 5, 6, 7, nan, nan, 8, 9, -1000, nan)
    index = torch.tensor([[1, 2, 4]])
    values, weights = make().target(tokens, index).chunk(2, dim=-1)
    assert values[0, 0].tolist() == pytest.approx([(3 - 5.5) / 6.000001**0.5, (4 - 5.5) / 6.000001**0.5])
    assert weights[0].tolist() == [[0.5, 0.5], [0, 1], [0, 0]]
    error = make().error(torch.ones(1, 3, 2), make().target(tokens, index))
    assert error[0, 1] == pytest.approx(abs(1 - (5 - 5.5) / 6.000001**0.5))
    assert error[0, 2] == 0


def test_predictions_are_restored_to_metres():
    tokens = tokens_of(1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    target, _ = make().target(tokens, EVERY).chunk(2, dim=-1)
    assert make().needs_statistics
    torch.testing.assert_close(make().restore(target, tokens, EVERY, None), tokens.content)
    # of the visible tokens 0 and 1 the middle ones by their ranks, 1 to 3, are left
    seen = make().restore(torch.zeros(1, 5, 2), tokens, EVERY, torch.tensor([[0, 1]]))
    assert seen.unique().tolist() == [2.0]
    # where nothing is visible the modality's own mean and deviation
    none = make().restore(torch.ones(1, 5, 2), tokens, EVERY, EVERY[:, :0])
    assert none.unique().tolist() == [5.0]


def test_without_standardisation_it_is_in_units():
    tokens = tokens_of(1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    loss = make(normalize="none")
    target, _ = loss.target(tokens, EVERY).chunk(2, dim=-1)
    torch.testing.assert_close(target, (tokens.content - 3) / 2)
    assert not loss.needs_statistics
    torch.testing.assert_close(loss.restore(target, tokens, EVERY, None), tokens.content)


def test_a_sample_without_values_has_no_error():
    tokens = tokens_of(*[float("nan")] * 10)
    assert make().error(torch.ones(1, 5, 2), make().target(tokens, EVERY)).tolist() == [[0.0] * 5]


def test_ids_are_refused():
    with pytest.raises(MmmaskError, match="use 'cross_entropy'"):
        make().prediction_dim(TokenSpec((2,), 1, vocab_size=4))

"""The loss of ids, against numbers worked out by hand."""

import math
from dataclasses import replace

import pytest
import torch

from mmmask.builtins.losses.cross_entropy import CrossEntropyLoss
from mmmask.interfaces import Mask, Tokens, TokenSpec
from mmmask_registry import MmmaskError

SPEC = TokenSpec((1,), 1, vocab_size=5)


def make(**settings):
    return CrossEntropyLoss(CrossEntropyLoss.Config(name="cross_entropy", **settings))


@pytest.fixture
def tokens():
    return Tokens(torch.tensor([[[0], [1], [1], [4]], [[1], [2], [1], [1]]]), (4,), SPEC)


def test_one_logit_per_id():
    assert make().prediction_dim(SPEC) == 5
    assert make().prediction_dim(TokenSpec((2,), 3, vocab_size=10)) == 60
    with pytest.raises(MmmaskError, match="is for ids, and these tokens hold values: use 'pixels'"):
        make().prediction_dim(TokenSpec((2,), 3))


def test_equal_logits_cost_the_logarithm_of_the_vocabulary(tokens):
    index = torch.tensor([[0, 3], [1, 2]])
    target = make().target(tokens, index)
    assert target.tolist() == [[[0], [4]], [[2], [1]]]
    error = make().error(torch.zeros(2, 2, 5), target)
    assert error.dtype == torch.float32
    torch.testing.assert_close(error, torch.full((2, 2), math.log(5)))
    assert make().error(torch.zeros(2, 2, 5, dtype=torch.bfloat16), target).dtype == torch.float32
    assert make().error(torch.zeros(2, 2, 5, dtype=torch.float64), target).dtype == torch.float64


def test_the_error_by_hand(tokens):
    target = make().target(tokens, torch.tensor([[0], [1]]))
    prediction = torch.log(torch.tensor([[[0.5, 0.125, 0.125, 0.125, 0.125]], [[0.1, 0.2, 0.3, 0.2, 0.2]]]))
    assert make().error(prediction, target).flatten().tolist() == pytest.approx([-math.log(0.5), -math.log(0.3)])
    smooth = -(0.9 * math.log(0.5) + 0.1 * (math.log(0.5) + 4 * math.log(0.125)) / 5)
    assert make(label_smoothing=0.1).error(prediction, target)[0].item() == pytest.approx(smooth)


def test_several_ids_of_a_token_are_averaged():
    spec = TokenSpec((2,), 1, vocab_size=3)
    tokens = Tokens(torch.tensor([[[0, 2]]]), (1,), spec)
    prediction = torch.log(torch.tensor([[[0.5, 0.25, 0.25, 0.2, 0.2, 0.6]]]))
    error = make().error(prediction, make().target(tokens, torch.tensor([[0]])))
    assert error.item() == pytest.approx(-(math.log(0.5) + math.log(0.6)) / 2)
    assert make().restore(prediction, tokens, torch.tensor([[0]]), None).tolist() == [[[0, 2]]]


def test_the_baseline_knows_visible_tokens_only(tokens):
    visible, predicted = torch.tensor([[1, 2, 3], [0, 2, 3]]), torch.tensor([[0], [1]])
    mask = Mask(visible, predicted, torch.ones(2, 1), torch.zeros(2, 4, dtype=torch.bool))
    # ids 1 five times and 4 once, each once more, of eleven
    expected = [math.log(count / 11) for count in (1, 6, 1, 1, 2)]
    found = make().baseline(tokens, mask)
    assert found.shape == (2, 1, 5)
    assert found[1, 0].tolist() == pytest.approx(expected)
    error = make().error(found, make().target(tokens, predicted))
    assert error.flatten().tolist() == pytest.approx([math.log(11), math.log(11)])


def test_the_likeliest_id_is_restored(tokens):
    prediction = torch.zeros(2, 1, 5)
    prediction[0, 0, 3] = prediction[1, 0, 1] = 1
    assert make().restore(prediction, tokens, torch.tensor([[0], [1]]), None).tolist() == [[[3]], [[1]]]
    assert not make().needs_statistics


def test_the_baseline_leaves_out_padding(tokens):
    mask = Mask(torch.arange(3).expand(2, -1), torch.full((2, 1), 3), torch.ones(2, 1), torch.zeros(2, 4).bool())
    padded = replace(tokens, valid=torch.tensor([[True, False, False, True], [True, True, False, True]]))
    counts = torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0])  # 0, 1 and 2 are seen once; each counts once more
    torch.testing.assert_close(make().baseline(padded, mask)[0, 0], (counts / counts.sum()).log())

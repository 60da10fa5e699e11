"""Frames of a clip."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmmask.interfaces import PLAIN, View
from mmmask_video.sampling import ClipSampler


def drawn(seed=0):
    return View(torch.Generator().manual_seed(seed))


def evenly(count, rate=30.0):
    return [i / rate for i in range(count)], count / rate


def test_frames_are_taken_evenly_rounded_down():
    # 3 seconds are the whole video: linspace(0, 89, 16) without its fractions
    times, end = evenly(90)
    expected = [int(i * 89 / 15 + 1e-9) for i in range(16)]
    assert ClipSampler(16, 3.0)(times, end, PLAIN) == expected
    assert expected[0] == 0
    assert expected[-1] == 89


def test_the_window_is_as_long_as_it_says_and_lies_anywhere():
    times, end = evenly(300)
    sampler, view = ClipSampler(16, 2.7), drawn()
    starts = []
    for _ in range(500):
        numbers = sampler(times, end, view)
        assert numbers == sorted(numbers)
        assert numbers[-1] - numbers[0] in (80, 81)
        starts.append(numbers[0])
    assert min(starts) <= 3
    assert max(starts) >= 216
    assert 95 < sum(starts) / len(starts) < 125


def test_without_generator_the_middle():
    times, end = evenly(300)
    assert ClipSampler(16, 2.0)(times, end, PLAIN)[0] == 120
    assert ClipSampler(16, 2.0, stride=4)(times, end, PLAIN) == list(range(119, 119 + 61, 4))


@pytest.mark.parametrize("stride", [None, 4])
def test_deterministic_clips_lie_evenly_over_the_video(stride):
    times, end = evenly(300)
    sampler = ClipSampler(16, 2.0, stride)
    starts = [sampler(times, end, View(index=index, of=3))[0] for index in range(3)]
    spare = 300 - (60 if stride is None else 61)
    assert starts == [spare * part // 6 for part in (1, 3, 5)]
    assert starts[1] == sampler(times, end, PLAIN)[0]


def test_the_generator_alone_decides():
    times, end = evenly(300)
    for sampler in (ClipSampler(16, 2.0), ClipSampler(16, 2.0, stride=4)):
        assert sampler(times, end, drawn(1)) == sampler(times, end, drawn(1))
        assert sampler(times, end, drawn(1)) != sampler(times, end, drawn(2))


def test_a_short_video_is_the_window():
    times, end = evenly(30)
    assert ClipSampler(16, 2.7)(times, end, drawn()) == [i * 29 // 15 for i in range(16)]
    assert ClipSampler(16, 2.7, stride=4)(times, end, drawn()) == [i * 29 // 15 for i in range(16)]


def test_too_few_frames_repeat_in_order():
    times, end = evenly(3)
    assert ClipSampler(8, 2.7)(times, end, drawn()) == [0, 0, 0, 0, 1, 1, 1, 2]
    assert ClipSampler(4, 2.7)([0.0], 0.1, drawn()) == [0, 0, 0, 0]
    assert ClipSampler(4, 0.5)([0.0], 60.0, drawn()) == [0, 0, 0, 0]


def test_one_frame_is_the_first_of_the_window():
    times, end = evenly(90)
    assert ClipSampler(1, 1.0)(times, end, PLAIN) == [30]
    assert ClipSampler(1, 1.0, stride=5)(times, end, PLAIN) == [44]


def test_stride():
    times, end = evenly(64)
    starts = {tuple(ClipSampler(16, 2.7, stride=4)(times, end, drawn(seed))) for seed in range(60)}
    assert starts == {tuple(range(first, first + 61, 4)) for first in range(4)}


def test_variable_frame_rate():
    # one frame each second, then thirty in one second: the window of a second holds one or many
    times = [0.0, 1.0, 2.0, *(3 + i / 30 for i in range(30))]
    sampler = ClipSampler(4, 1.0)
    results = [sampler(times, 4.0, drawn(seed)) for seed in range(50)]
    assert any(len(set(numbers)) == 1 for numbers in results)
    assert any(len(set(numbers)) == 4 for numbers in results)


def test_a_window_without_a_frame_shows_the_one_before():
    assert ClipSampler(2, 0.5)([0.0, 10.0], 10.1, PLAIN) == [0, 0]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(0, 60, allow_nan=False), min_size=1, max_size=50, unique=True),
    st.floats(0.01, 10),
    st.integers(1, 20),
    st.none() | st.integers(1, 8),
    st.integers(0, 1000),
)
def test_numbers_are_always_valid(times, seconds, num_frames, stride, seed):
    times = sorted(times)
    for view in (PLAIN, drawn(seed)):
        numbers = ClipSampler(num_frames, seconds, stride)(times, times[-1] + 0.1, view)
        assert len(numbers) == num_frames
        assert numbers == sorted(numbers)
        assert 0 <= numbers[0] <= numbers[-1] < len(times)

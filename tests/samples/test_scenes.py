import numpy as np
import pytest

from mmmask_samples.scenes import MOTIONS, Pose, draw_scene, render_clip, render_image
from mmmask_samples.shapes import SHAPES

SIZE = (72, 96)


def scene(shape: str = "heart", seed: int = 0):
    return draw_scene(np.random.default_rng(seed), shape, SIZE)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fills_about_the_unit_circle(shape):
    axis = np.linspace(-1.5, 1.5, 301)
    inside = SHAPES[shape](*np.meshgrid(axis, axis)) < 0
    v, u = np.nonzero(inside)
    reach = np.abs(np.stack([axis[u], axis[v]])).max()
    assert 0.75 < reach < 1.2
    assert 1.0 < inside.mean() * 9 < 3.2


@pytest.mark.parametrize("shape", SHAPES)
def test_a_distance_grows_at_most_as_fast_as_the_way(shape):
    axis = np.linspace(-1.5, 1.5, 301)
    slopes = np.gradient(SHAPES[shape](*np.meshgrid(axis, axis)), axis[1] - axis[0])
    assert np.hypot(*slopes).max() < 1.5  # where two sides meet the two differences may come from different ones
    assert np.median(np.hypot(*slopes)) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("shape", SHAPES)
def test_an_image_shows_its_shape(shape):
    image = render_image(scene(shape))
    assert image.shape == (*SIZE, 3)
    assert image.dtype == np.uint8
    assert image.std() > 10
    others = [render_image(scene(other)) for other in SHAPES if other != shape]
    assert min(difference(image, other) for other in others) > 0.5


def test_the_same_seed_gives_the_same_pixels_and_another_does_not():
    assert np.array_equal(render_image(scene(seed=1)), render_image(scene(seed=1)))
    assert difference(render_image(scene(seed=1)), render_image(scene(seed=2))) > 5


@pytest.mark.parametrize("motion", MOTIONS)
def test_a_motion_starts_from_the_still_scene_and_moves_on(motion):
    clip = render_clip(scene(), motion, 8)
    assert clip.shape == (8, *SIZE, 3)
    assert np.array_equal(clip[0], render_image(scene()))
    from_start = [difference(clip[0], frame) for frame in clip]
    assert from_start[-1] > from_start[1] > 0.1


def test_motions_go_where_their_names_say():
    start = scene("circle")
    rows, columns = np.indices(SIZE)
    x = columns - SIZE[1] / 2 - start.pose.x * min(SIZE)
    y = rows - SIZE[0] / 2 - start.pose.y * min(SIZE)

    def change(motion: str) -> np.ndarray:
        first, last = render_clip(start, motion, 2).astype(float)
        return np.abs(last - first).sum(-1)  # (height, width): the places the shape leaves and enters

    for motion, along in (("left", -x), ("right", x), ("up", -y), ("down", y)):
        weights = change(motion)
        assert (weights * along).sum() / weights.sum() > 3
    radius = start.pose.radius * min(SIZE)
    for motion, outwards in (("growing", True), ("shrinking", False)):
        assert ((change(motion) * (np.hypot(x, y) > radius)).sum() > change(motion).sum() / 2) == outwards


def test_a_quarter_turn_clockwise_is_clockwise_on_the_screen():
    top = np.zeros(1), np.full(1, -1.0)
    # After a quarter turn clockwise the picture's right side shows what was on top.
    own = Pose(x=0, y=0, radius=1, angle=np.pi / 2).own(np.ones(1), np.zeros(1))
    assert np.allclose(own, top, atol=1e-6)
    assert MOTIONS["clockwise"][3] > 0 > MOTIONS["counterclockwise"][3]

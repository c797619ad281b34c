"""Drawn videos: the class is a motion, and one frame says nothing about it."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from kinetics400.data.motion import (
    MOTION_CLASSES,
    draw_scene,
    render_mask,
    render_video,
    trajectory,
)

N_CLASS = len(MOTION_CLASSES)


def label_of(name: str) -> int:
    return MOTION_CLASSES.index(name)


def test_sizes_rates_and_durations_vary_like_kinetics():
    scenes = [draw_scene(0, (5, i)) for i in range(400)]
    wide = np.array([s.width / s.height for s in scenes])
    assert 0.7 < np.mean(wide > 1.2) < 0.86 and 0.08 < np.mean(wide < 0.8) < 0.23
    assert {s.fps for s in scenes} == {Fraction(24), Fraction(25), Fraction(30000, 1001), 30}
    assert all(s.width % 2 == s.height % 2 == 0 for s in scenes)
    assert {min(s.width, s.height) for s in scenes} == {64, 72, 80}
    seconds = [s.n_frames / s.fps for s in scenes]
    assert min(seconds) < 2.9 and max(seconds) > 3.8


def test_first_frame_is_the_same_picture_distribution_whatever_the_class():
    """With one key, only the motion differs: background, object, and length are the same."""
    for i in range(2):
        scenes = [draw_scene(label, (7, i), short=True) for label in range(N_CLASS)]
        frames = [render_video(s)[0] for s in scenes]
        for frame in frames:
            np.testing.assert_array_equal(frame, frames[0])
        assert len({s.n_frames for s in scenes}) == 1


@pytest.mark.parametrize("label", range(N_CLASS), ids=MOTION_CLASSES)
@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_position_and_size_are_uniform_at_any_time_in_every_class(label, at):
    """Kolmogorov-Smirnov against the uniform distribution, n = 400: 1.95 / sqrt(n) is p = 0.001."""
    values = []
    for i in range(400):
        scene = draw_scene(label, (8, i))
        centres, diameters = trajectory(scene)
        t = round(at * (scene.n_frames - 1))
        values.append((*centres[t], np.log(diameters[t] / 0.25) / np.log(0.55 / 0.25)))
    expected = (np.arange(400) + 0.5) / 400
    for column in np.sort(np.array(values), axis=0).T:
        assert np.abs(column - expected).max() < 1.95 / 20


def test_drawn_masks_and_colours_do_not_depend_on_the_class():
    """Brute force over pixels: per class, of frames at random times, each video another scene."""
    n = 100
    rng = np.random.default_rng(0)
    statistics = np.zeros((N_CLASS, n, 6))
    for label in range(N_CLASS):
        for i in range(n):
            # Two frames, the second of them after 0 to 4 s: much less to draw than the video.
            rate = Fraction(1000, int(rng.integers(1, 4000)))
            scene = replace(draw_scene(label, (9, label, i)), n_frames=2, fps=rate)
            opacity, image = render_mask(scene)[0][1], render_video(scene)[1]
            side = min(opacity.shape)
            square = opacity[:side, :side]  # one period in both directions
            halves = square[: side // 2].mean(), square[:, : side // 2].mean()
            statistics[label, i] = (square.mean(), *halves, *image.mean((0, 1)))
    means, errors = statistics.mean(1), statistics.std(1) / np.sqrt(n)
    z = (means - means.mean(0)) / np.sqrt((errors**2).mean(0))
    assert np.abs(z).max() < 4  # 72 numbers: one in 200 runs by chance, and the seed is fixed


def test_mask_area_is_that_of_the_disc_of_the_diameter():
    for i in range(12):
        scene = draw_scene(label_of("growing"), (10, i))
        side = min(scene.width, scene.height)
        area = render_mask(scene)[0][:, :side, :side].mean((1, 2))
        np.testing.assert_allclose(area, np.pi / 4 * trajectory(scene)[1] ** 2, rtol=0.03)


@pytest.mark.parametrize(
    ("name", "x", "y"),
    [
        ("moving right", 1, 0),
        ("moving left", -1, 0),
        ("moving up", 0, -1),
        ("moving down", 0, 1),
        ("moving up and right", 1, -1),
        ("moving down and left", -1, 1),
        ("moving up and left", -1, -1),
        ("moving down and right", 1, 1),
    ],
)
def test_the_object_moves_where_the_name_says(name, x, y):
    """The displacement between two drawn frames, by circular correlation of their masks."""
    for i in range(4):
        opacity = render_mask(draw_scene(label_of(name), (11, i)))[0]
        side = min(opacity.shape[1:])
        first, later = (np.fft.fft2(opacity[t, :side, :side]) for t in (0, 12))
        peak = np.fft.ifft2(later * first.conj()).real
        shift = np.unravel_index(peak.argmax(), peak.shape)
        down, right = ((s + side // 2) % side - side // 2 for s in shift)
        assert (np.sign(right), np.sign(down)) == (x, y)


def test_growing_grows_and_falls_back():
    steps = np.diff(trajectory(draw_scene(label_of("growing"), (13,)))[1])
    assert (steps > 0).mean() > 0.95 and (steps[steps < 0] < -0.25).all()


@pytest.mark.parametrize("label", range(0, N_CLASS, 2), ids=MOTION_CLASSES[::2])
def test_opposite_classes_are_time_reversals(label):
    """The forward motion read backwards is the opposite class's motion from another start."""
    for i in range(3):
        forward = trajectory(draw_scene(label, (14, i)))
        opposite = trajectory(draw_scene(label + 1, (14, i)))
        for a, b, period in ((forward[0], opposite[0], 1), *_log_sizes(forward, opposite)):
            there = np.diff(a[::-1], axis=0)
            here = np.diff(b, axis=0)
            difference = (there - here[: len(there)] + period / 2) % period - period / 2
            np.testing.assert_allclose(difference, 0, atol=1e-6)


def _log_sizes(forward, opposite):
    yield np.log(forward[1]), np.log(opposite[1]), np.log(0.55 / 0.25)


def test_video_is_a_function_of_label_and_key():
    a, b = (render_video(draw_scene(2, (15, 1), short=True)) for _ in range(2))
    np.testing.assert_array_equal(a, b)
    assert a.dtype == np.uint8 and a.ndim == 4 and len(a) < 64
    assert (
        render_video(draw_scene(2, (15, 2), short=True)).shape != a.shape
        or (render_video(draw_scene(2, (15, 2), short=True)) != a).any()
    )

"""Both renderers put the right colors in the right places, and the same ones each time."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from demo_world.render import RGB, render_clips, render_clips_at
from demo_world.render_other import render_frames
from demo_world.world import BACKGROUNDS, Scene, Shot, frame_times
from tests.demo_world.test_questions import BLUE, GREEN, RED

FRAMES, HEIGHT, WIDTH = 8, 112, 140
Render = Callable[[Scene], np.ndarray]


def _training(scene: Scene) -> np.ndarray:
    pixels: np.ndarray = render_clips_at([scene], frame_times(FRAMES), HEIGHT, WIDTH)[0].permute(0, 2, 3, 1).numpy()
    return pixels


def _other(scene: Scene) -> np.ndarray:
    return render_frames(scene, frame_times(FRAMES), HEIGHT, WIDTH)


both = pytest.mark.parametrize("render", [_training, _other])


def _nearest_color(pixel: Sequence[int]) -> str:
    return min(RGB, key=lambda name: sum((int(a) - b) ** 2 for a, b in zip(pixel, RGB[name], strict=True)))


@both
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_the_shape_is_where_it_moved(render: Render, background: str) -> None:
    clip = render(Scene((RED,), background, 5))
    assert clip.shape == (FRAMES, HEIGHT, WIDTH, 3) and clip.dtype == np.uint8
    first, last = clip[0, HEIGHT // 2, round(0.2 * WIDTH)], clip[-1, HEIGHT // 2, round(0.8 * WIDTH)]
    assert _nearest_color(first) == _nearest_color(last) == "red"
    assert np.abs(clip[0, HEIGHT // 2, round(0.8 * WIDTH)].astype(int) - RGB["red"]).max() > 60


@both
def test_a_change_of_color_shows(render: Render) -> None:
    clip = render(Scene((replace(GREEN, end_x=GREEN.x),), "plain", 5))
    center = clip[:, HEIGHT // 2, round(GREEN.x * WIDTH)]
    assert _nearest_color(center[0]) == "green" and _nearest_color(center[-1]) == "yellow"


@both
def test_what_appears_is_not_there_before(render: Render) -> None:
    clip = render(Scene((replace(BLUE, end_x=BLUE.x),), "plain", 5)).astype(int)
    assert np.abs(clip[0] - clip[1]).max() == 0
    assert np.abs(clip[-1] - clip[0]).max() > 60


@both
def test_a_seed_gives_one_clip(render: Render) -> None:
    scene = Scene((RED,), "noisy", 9)
    assert np.array_equal(render(scene), render(scene))
    assert not np.array_equal(render(scene), render(replace(scene, seed=10)))


def test_softening_keeps_the_color() -> None:
    clip = (
        render_clips([Scene((RED,), "plain", 5)], [frame_times(FRAMES)], Shot(FRAMES, HEIGHT, WIDTH))[0]
        .permute(0, 2, 3, 1)
        .numpy()
    )
    assert _nearest_color(clip[0, HEIGHT // 2, round(0.2 * WIDTH)]) == "red"

"""Whether pictures are of the drawn world: statistics of drawn pictures, and clips of the world itself."""

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from demo_world.moving_camera import render_panned
from demo_world.render import render_clips
from demo_world.render_other import render_frames
from demo_world.world import Shot, draw_scene, frame_times
from vidqa.engine.domain_check import DomainCheck, PictureStatistics, is_out_of_domain, measure
from vidqa.models.hub import demo_folder
from vidqa.models.training_domain import TrainingDomain, read_domain

RED, BLUE, GRAY = (215, 40, 40), (45, 75, 215), (120, 124, 118)


@cache
def domain() -> TrainingDomain:
    found = read_domain(demo_folder())
    assert found is not None
    return found


def drawn(background: tuple[int, int, int], *disks: tuple[int, int, tuple[int, int, int]]) -> np.ndarray:
    """Draw disks of radius 18 at (x, y) in colors: (112, 140, 3)."""
    picture = Image.new("RGB", (140, 112), background)
    for x, y, color in disks:
        ImageDraw.Draw(picture).ellipse((x - 18, y - 18, x + 18, y + 18), fill=color)
    return np.asarray(picture)


def measured(picture: np.ndarray) -> PictureStatistics:
    return measure(picture, np.array(domain().paints, np.float32))


def is_foreign(picture: np.ndarray) -> bool:
    return is_out_of_domain(domain(), [picture, picture])


def text_page() -> np.ndarray:
    picture = Image.new("RGB", (140, 112), "white")
    lines = "\n".join(["what you see", "is a page of", "black letters", "on white paper"] * 2)
    ImageDraw.Draw(picture).multiline_text((4, 4), lines, fill="black", font=ImageFont.load_default(12))
    return np.asarray(picture)


def test_a_disk_on_gray_is_one_compact_shape_of_one_paint() -> None:
    found = measured(drawn(GRAY, (60, 50, RED)))
    assert found.background_color == pytest.approx(np.hypot(120 - 124, (120 + 124) / 2 - 118))
    assert found.stray_color == 0 and found.roughness == 0 and found.hard_edges == 0
    assert found.shape_share == pytest.approx(np.pi * 18**2 / (112 * 140), rel=0.35)  # cells at its edge count whole
    assert found.spread == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("picture", "statistic"),
    [
        (drawn(BLUE), "background_color"),
        (drawn(GRAY, (40, 50, RED), (100, 50, BLUE)), "stray_color"),
        (drawn(GRAY, (70, 50, (200, 40, 220))), "stray_color"),
        (drawn(GRAY, (25, 30, RED), (115, 80, RED)), "spread"),
        (drawn(GRAY, *[(x, y, RED) for x in (30, 50, 70, 90) for y in (40, 60, 80)]), "shape_share"),
        (text_page(), "roughness"),
        (text_page(), "hard_edges"),
        (text_page(), "sharpness"),
    ],
)
def test_what_the_world_does_not_have_exceeds_a_limit(picture: np.ndarray, statistic: str) -> None:
    assert getattr(measured(picture), statistic) > domain().limits[statistic]
    assert is_foreign(picture)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_a_plain_picture_is_an_empty_one_of_the_world(level: int) -> None:
    assert not is_foreign(drawn((level, level, level)))


def test_the_smallest_pictures_can_be_measured() -> None:
    assert not is_foreign(np.full((1, 1, 3), 90, np.uint8)) and not is_foreign(np.full((1, 300, 3), 90, np.uint8))


def test_an_edge_across_the_whole_background_is_that_of_one_that_moves() -> None:
    picture = drawn(GRAY, (40, 30, RED)).copy()
    picture[80:] -= 90
    assert measured(picture).hard_edges == 0 and not is_foreign(picture)


def test_few_pictures_are_looked_at_and_a_fifth_of_them_may_differ() -> None:
    plain, foreign = drawn(GRAY), text_page()
    check = DomainCheck(domain(), 600)
    for number in range(600):
        check.add(foreign if number == 599 else plain)
    assert not check.out_of_domain, "one of five"
    assert is_out_of_domain(domain(), [foreign, foreign, plain, plain, plain])
    assert not is_out_of_domain(domain(), [])


def test_clips_of_the_world_pass() -> None:
    """Both renderers, noise, moving backgrounds; `scripts/bench_domain.py` has 1,200 of them."""
    unlike = []
    for seed in range(24):
        rng = random.Random(f"passes/{seed}")
        shot = Shot(6, 112, 140)
        scene, times = draw_scene(rng, shot), frame_times(6)
        shot = replace(shot, grain=24.0 * (seed % 2), pan=(0.7 * (seed % 3), 0.4 * (seed % 3)))
        training = render_clips([scene], [times], shot)[0].permute(0, 2, 3, 1).numpy()
        for pictures in (training, render_frames(scene, times, 112, 140), render_panned(scene, times, 112, 140)):
            unlike.append(is_out_of_domain(domain(), list(np.ascontiguousarray(pictures))))
    assert len(unlike) == 72 and not any(unlike)

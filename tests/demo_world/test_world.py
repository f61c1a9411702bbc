"""Scenes: seeded, and clear in the frames that are sampled of them."""

import random

import pytest

from demo_world.world import COLORS, DIRECTIONS, MIN_TWO_EVENT_FRAMES, Scene, Shot, draw_scene, frame_times

SHOTS = [Shot(1, 84, 84), Shot(2, 84, 112), Shot(4, 112, 140), Shot(8, 84, 168), Shot(16, 168, 112), Shot(32, 224, 224)]


def _scenes(shot: Shot, count: int = 150) -> list[Scene]:
    rng = random.Random(11)
    return [draw_scene(rng, shot) for _ in range(count)]


def test_a_seed_gives_one_world() -> None:
    assert _scenes(SHOTS[2]) == _scenes(SHOTS[2])


@pytest.mark.parametrize("shot", SHOTS, ids=str)
def test_shapes_are_large_enough_and_inside(shot: Shot) -> None:
    shorter = min(shot.height, shot.width)
    for actor in (actor for scene in _scenes(shot) for actor in scene.actors):
        across = actor.across * shorter
        assert across >= max(28, 0.15 * shorter) - 1e-6
        for x, y in ((actor.x, actor.y), (actor.end_x, actor.end_y)):
            assert across / 2 - 1e-6 <= x * shot.width <= shot.width - across / 2 + 1e-6
            assert across / 2 - 1e-6 <= y * shot.height <= shot.height - across / 2 + 1e-6


@pytest.mark.parametrize("shot", SHOTS[1:], ids=str)
def test_motion_is_long_and_along_its_direction(shot: Shot) -> None:
    for actor in (actor for scene in _scenes(shot) for actor in scene.actors):
        across, down = actor.end_x - actor.x, actor.end_y - actor.y
        if actor.kind != "moves":
            assert (across, down) == (0, 0)
            continue
        assert max(abs(across), abs(down)) >= 0.3 - 1e-6
        assert (across > 0, across < 0, down > 0, down < 0) == tuple(
            actor.direction == way for way in ("right", "left", "down", "up")
        )


@pytest.mark.parametrize("shot", SHOTS[1:], ids=str)
def test_every_event_shows_in_the_sampled_frames(shot: Shot) -> None:
    times = frame_times(shot.frames)
    for scene in _scenes(shot):
        for actor in scene.actors:
            there = [time for time in times if actor.appear <= time < actor.leave]
            assert len(there) >= (2 if len(scene.actors) == 2 else 1)
            if actor.kind == "changes":
                assert any(time < actor.change for time in there) and any(time >= actor.change for time in there)
            if actor.kind == "appears":
                assert there[0] > times[0]


def test_two_events_need_frames_enough() -> None:
    few = Shot(MIN_TWO_EVENT_FRAMES - 2, 112, 112)
    assert all(len(scene.actors) <= 1 for scene in _scenes(few))
    assert any(len(scene.actors) == 2 for scene in _scenes(SHOTS[3]))


def test_a_single_frame_can_only_stay_still() -> None:
    assert {actor.kind for scene in _scenes(SHOTS[0]) for actor in scene.actors} == {"still"}


def test_the_first_of_two_leaves_before_the_second_comes() -> None:
    pairs = [scene.actors for scene in _scenes(SHOTS[4]) if len(scene.actors) == 2]
    assert pairs and all(first.leave < second.appear for first, second in pairs)


def test_the_second_shape_is_never_the_first_one_again() -> None:
    pairs = [scene.actors for scene in _scenes(SHOTS[4], 400) if len(scene.actors) == 2]
    assert all((first.shape, first.end_color) != (second.shape, second.color) for first, second in pairs)


def test_all_kinds_colors_and_directions_occur() -> None:
    actors = [actor for scene in _scenes(SHOTS[4], 400) for actor in scene.actors]
    assert {actor.kind for actor in actors} == {"moves", "still", "appears", "changes"}
    assert {actor.color for actor in actors} == set(COLORS)
    assert {actor.direction for actor in actors} == set(DIRECTIONS)
    assert all((actor.color == actor.end_color) == (actor.kind != "changes") for actor in actors)

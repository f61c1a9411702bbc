"""Images are answered about as videos are: by the trained demo model, from the file on."""

from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from vidqa import EngineConfig, Request, Session
from vidqa.events import Answered


def circle(left: int) -> Image.Image:
    picture = Image.new("RGB", (280, 280), "black")
    ImageDraw.Draw(picture).ellipse((left, 90, left + 80, 170), fill="red")
    return picture


@pytest.mark.parametrize(
    ("name", "places", "answer"),
    [
        ("still.png", [100], "a red circle stays still."),
        ("right.webp", [10 + 14 * step for step in range(12)], "a red circle moves right."),
    ],
)
def test_an_image_is_answered_about(tmp_path: Path, name: str, places: list[int], answer: str) -> None:
    first, *others = map(circle, places)
    first.save(tmp_path / name, save_all=bool(others), append_images=others, duration=100, lossless=True)
    with Session(EngineConfig(remember=False)) as session:
        *_, last = session.ask(Request(str(tmp_path / name), "What happens in this video?", max_tokens=32))
    assert isinstance(last, Answered)
    assert last.answer.text == answer
    assert last.answer.plan.run_config.frames % 2 == 0

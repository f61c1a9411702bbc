"""Contact sheets: every pixel of every frame in its place, whole files only."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from vidqa.errors import UsageError
from vidqa.video.contact_sheet import MAX_SHEET_PIXELS, MAX_SHEET_SIDE, lay_out, write_sheet

STRIP = 20


def noise(count: int, height: int, width: int) -> list[np.ndarray]:
    draw = np.random.default_rng(5)
    return [draw.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as sheet:
        assert sheet.format == "PNG" and sheet.mode == "RGB"
        return np.array(sheet)


def places_of(pictures: Sequence[np.ndarray], sheet: np.ndarray) -> list[tuple[int, int]]:
    """(row, column) in pixels of each picture, found by its first eight pixels and compared as a whole."""
    places = []
    for picture in pictures:
        height, width, _ = picture.shape
        windows = np.lib.stride_tricks.sliding_window_view(sheet, (1, 8, 3))[:, :, 0, 0]
        found = np.argwhere((windows == picture[0, :8]).all(axis=(2, 3)))
        assert len(found) == 1
        y, x = (int(value) for value in found[0])
        assert np.array_equal(sheet[y : y + height, x : x + width], picture)
        places.append((y, x))
    return places


def caption(text: str, width: int) -> np.ndarray:
    strip = Image.new("RGB", (width, STRIP), (24, 24, 24))
    ImageDraw.Draw(strip).text((0, 2), text, (232, 232, 232), ImageFont.load_default(14))
    return np.array(strip)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 56, 84), (7, 56, 84), (12, 28, 28), (5, 140, 56)])
@pytest.mark.parametrize("columns", [None, 1, 3, 100])
def test_every_pixel_is_where_it_belongs(
    tmp_path: Path, count: int, height: int, width: int, columns: int | None
) -> None:
    pictures, path = noise(count, height, width), tmp_path / "sheet.png"
    size = write_sheet(pictures, [12.5 * place for place in range(count)], str(path), columns=columns)
    sheet = pixels(path)
    assert size == (sheet.shape[1], sheet.shape[0])
    places = places_of(pictures, sheet)
    assert places == sorted(places)  # in order of time, row by row
    if columns is not None:
        assert len({x for _, x in places}) == min(columns, count)


def test_captions_show_number_and_time(tmp_path: Path) -> None:
    pictures, path = noise(3, 56, 168), tmp_path / "sheet.png"
    write_sheet(pictures, (0.0, 12.5, 3725.04), str(path), columns=2)
    sheet = pixels(path)
    texts = ("#1  0:00.0", "#2  0:12.5", "#3  1:02:05.0")
    for (y, x), text in zip(places_of(pictures, sheet), texts, strict=True):
        assert np.array_equal(sheet[y + 56 : y + 56 + STRIP, x : x + 168], caption(text, 168))


def test_given_captions_stand_in_place_of_number_and_time(tmp_path: Path) -> None:
    (picture,), path = noise(1, 56, 168), tmp_path / "sheet.png"
    write_sheet([picture], (12.5,), str(path), captions=["#1  0:12.0-0:13.0"])
    sheet = pixels(path)
    ((y, x),) = places_of([picture], sheet)
    assert np.array_equal(sheet[y + 56 : y + 56 + STRIP, x : x + 168], caption("#1  0:12.0-0:13.0", 168))
    title = np.full((STRIP, 168, 3), 24, np.uint8)
    title[:, : caption("1 frame of 168x56", 168).shape[1]] = caption("1 frame of 168x56", 168)
    assert np.array_equal(sheet[4 : 4 + STRIP, 6 : 6 + 168], title)


def test_fewer_pictures_than_times_get_the_first_times(tmp_path: Path) -> None:
    pictures, one, two = noise(2, 56, 84), tmp_path / "one.png", tmp_path / "two.png"
    write_sheet(pictures, (0.0, 1.0, 2.0, 3.0), str(one))
    write_sheet(pictures, (0.0, 1.0), str(two))
    assert one.read_bytes() == two.read_bytes()


def test_pictures_need_not_be_contiguous(tmp_path: Path) -> None:
    pictures = [picture.transpose(2, 0, 1).copy().transpose(1, 2, 0) for picture in noise(2, 56, 84)]
    write_sheet(pictures, (0.0, 1.0), str(tmp_path / "sheet.png"))
    places_of(pictures, pixels(tmp_path / "sheet.png"))


def test_columns_are_chosen_for_a_sheet_that_fits() -> None:
    for count, width, height in ((768, 448, 272), (64, 1008, 580), (300, 28, 48), (200, 84, 5000), (20, 5000, 84)):
        layout = lay_out(count, width, height, None)
        assert layout.fits and layout.columns * layout.rows >= count
        assert max(layout.size) <= MAX_SHEET_SIDE and layout.size[0] * layout.size[1] <= MAX_SHEET_PIXELS


def test_too_large_a_sheet_is_refused_before_it_is_made(tmp_path: Path) -> None:
    picture = np.zeros((560, 1008, 3), np.uint8)
    with pytest.raises(UsageError, match="768 frames need a sheet of") as caught:
        write_sheet([picture] * 768, [0.0] * 768, str(tmp_path / "sheet.png"))
    assert "--frames" in caught.value.remedy and not list(tmp_path.iterdir())
    with pytest.raises(UsageError) as caught:
        write_sheet([picture] * 40, [0.0] * 40, str(tmp_path / "sheet.png"), columns=1)
    assert "--columns" in caught.value.remedy
    with pytest.raises(UsageError, match="0 columns"):
        write_sheet([picture], [0.0], str(tmp_path / "sheet.png"), columns=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing/sheet.png", "does not exist"),
        ("file/sheet.png", "does not exist"),
        ("folder.png", "is a folder"),
        ("sheet.jpg", "is a PNG"),
        ("x" * 300 + ".png", "cannot be written"),
    ],
)
def test_a_path_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=words) as caught:
        write_sheet(noise(1, 56, 84), (0.0,), str(tmp_path / name))
    assert caught.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder.png"]


def test_an_interrupted_run_keeps_the_sheet_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    write_sheet(noise(1, 56, 84), (0.0,), str(path))
    before = path.read_bytes()

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vidqa.utils.atomic_write.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_sheet(noise(2, 56, 84), (0.0, 1.0), str(path))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_pictures_of_different_sizes_are_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one size"):
        write_sheet([*noise(1, 56, 84), *noise(1, 84, 56)], (0.0, 1.0), str(tmp_path / "sheet.png"))

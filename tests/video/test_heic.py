"""HEIC pictures, as phones make them: tiles put together, turned once, on white, refused where sizes are absurd."""

from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from PIL import Image
from pillow_heif import from_pillow, register_heif_opener

from tests.video.heic_files import heic_grid
from vidqa.errors import PictureTooLarge, VideoError, VideoTooDamaged, VideoUnreadable
from vidqa.types import Frame, VideoInfo
from vidqa.video.path_completion import is_image_name
from vidqa.video.reader import open_video

Colour = tuple[int, int, int]
R, G, B, W = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
SECONDS = 5.0  # to refuse a file, the start of the decoding process included


def seen(path: Path, *, isolated: bool = False) -> tuple[VideoInfo, Frame]:
    with open_video(str(path), isolated=isolated) as reader:
        (frame,) = reader.frames(range(reader.info.frame_count))
        return reader.info, frame


def quarters_of(rgb: np.ndarray) -> list[Colour]:
    """The colour amid each quarter, row by row, each part of it rounded to 0 or 255."""
    height, width, _ = rgb.shape
    places = [(y * height // 4, x * width // 4) for y in (1, 3) for x in (1, 3)]
    return [tuple(255 if part > 127 else 0 for part in rgb[place].tolist()) for place in places]  # type: ignore[misc]


def quartered(width: int, height: int) -> Image.Image:
    pixels = np.uint8([[R, G], [B, W]]).repeat(height // 2, 0).repeat(width // 2, 1)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("size", [(128, 128), (120, 100)])  # phones' last tiles reach beyond the picture
def test_tiles_are_put_together(tmp_path: Path, size: tuple[int, int], isolated: bool) -> None:
    path = heic_grid(tmp_path / "photo.heic", (R, G, B, W), size=size)
    info, frame = seen(path, isolated=isolated)
    assert (info.width, info.height, info.frame_count, info.codec, info.notes) == (*size, 1, "heif", ())
    assert frame.rgb.shape == (size[1], size[0], 3)
    assert np.abs(frame.rgb[63, 63].astype(int) - R).max() <= 2 and np.abs(frame.rgb[64, 64].astype(int) - W).max() <= 2
    assert quarters_of(frame.rgb) == [R, G, B, W]


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"heim", b"heis", b"mif1"])
def test_a_heic_of_any_name_is_recognised_by_its_brand(tmp_path: Path, brand: bytes) -> None:
    data = heic_grid(tmp_path / "photo.heic", (R, G, B, W)).read_bytes()
    (tmp_path / "clip.mp4").write_bytes(data.replace(b"ftypheic", b"ftyp" + brand))
    assert quarters_of(seen(tmp_path / "clip.mp4")[1].rgb) == [R, G, B, W]


def test_an_avif_under_the_brand_of_both_is_read_too(tmp_path: Path) -> None:
    quartered(64, 32).save(tmp_path / "a.avif", quality=90)
    path = tmp_path / "a.heif"
    path.write_bytes((tmp_path / "a.avif").read_bytes().replace(b"ftypavif", b"ftypmif1"))
    info, frame = seen(path)
    assert info.codec == "avif" and quarters_of(frame.rgb) == [R, G, B, W]


@pytest.mark.parametrize(
    ("turns", "expected"), [(0, [R, G, B, W]), (1, [G, W, R, B]), (2, [W, B, G, R]), (3, [B, R, W, G])]
)
def test_tiles_are_turned_as_the_file_says(tmp_path: Path, turns: int, expected: list[Colour]) -> None:
    path = heic_grid(tmp_path / "photo.heic", (R, G, B, W), size=(128, 100), quarters=turns)
    info, frame = seen(path)
    assert (info.width, info.height) == ((100, 128) if turns % 2 else (128, 100)) == frame.rgb.shape[1::-1]
    assert quarters_of(frame.rgb) == expected


@pytest.mark.parametrize(("turns", "expected"), [(3, [B, R, W, G]), (None, [R, G, B, W])])
def test_a_photo_whose_exif_says_it_again_is_turned_once(
    tmp_path: Path, turns: int | None, expected: list[Colour]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to the right; ISO 23008-12 has readers of HEIF pass over it
    path = heic_grid(tmp_path / "photo.heic", (R, G, B, W), size=(128, 100), quarters=turns, exif=exif.tobytes())
    register_heif_opener()
    with Image.open(path) as image:
        assert image.info["original_orientation"] == 6
    info, frame = seen(path)
    assert (info.width, info.height) == ((100, 128) if turns else (128, 100)) == frame.rgb.shape[1::-1]
    assert quarters_of(frame.rgb) == expected


def test_what_is_transparent_is_white(tmp_path: Path) -> None:
    picture = quartered(128, 64).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 64, 32))
    from_pillow(picture).save(tmp_path / "a.heic", quality=95)
    assert quarters_of(seen(tmp_path / "a.heic")[1].rgb) == [W, G, B, W]


def test_of_several_pictures_the_primary_one_is_shown(tmp_path: Path) -> None:
    pictures = from_pillow(Image.new("RGB", (64, 64), B))
    pictures.add_from_pillow(quartered(128, 64))
    pictures.save(tmp_path / "two.heic", primary_index=1, quality=95)
    info, frame = seen(tmp_path / "two.heic")
    assert (info.width, info.height, quarters_of(frame.rgb)) == (128, 64, [R, G, B, W])
    assert info.notes == ("The file has 2 pictures: its primary one, number 2, is taken.",)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((60_000, 60_000), "3600000000 pixels"), ((2**31 - 1, 2**31 - 1), f"{(2**31 - 1) ** 2} pixels"),
        ((8192, 4353), "8192×4353 = 35,659,776 pixels; at most 35,651,584"), ((33_000, 200), "at most 32,767"),
        ((128 * 201, 128), "longer than 200:1"),
    ],
)  # fmt: skip
def test_an_absurd_size_is_refused_before_anything_is_decoded(
    tmp_path: Path, size: tuple[int, int], words: str, isolated: bool
) -> None:
    path = heic_grid(tmp_path / "bomb.heic", (R, G, B, W), header_size=size)
    begin = monotonic()
    with pytest.raises(PictureTooLarge, match=r"bomb\.heic") as caught:
        open_video(str(path), isolated=isolated)
    assert monotonic() - begin < SECONDS
    assert words in caught.value.what


@pytest.mark.parametrize(
    ("size", "header_size"), [((128, 128), (4096, 4096)), ((30_000, 30_000), (128, 128)), ((128, 128), (120, 100))]
)
def test_sizes_that_contradict_each_other_are_refused(
    tmp_path: Path, size: tuple[int, int], header_size: tuple[int, int]
) -> None:
    path = heic_grid(tmp_path / "lie.heic", (R, G, B, W), size=size, header_size=header_size)
    begin = monotonic()
    with pytest.raises(VideoTooDamaged, match=r"lie\.heic cannot be read as an image: Invalid input") as caught:
        open_video(str(path))
    assert monotonic() - begin < SECONDS and caught.value.remedy


@pytest.mark.parametrize("share", [0.95, 0.5, 0.1, 0.02])
def test_a_truncated_heic_is_refused_by_name_with_a_remedy(tmp_path: Path, share: float) -> None:
    path = heic_grid(tmp_path / "cut.heic", (R, G, B, W))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    begin = monotonic()
    with pytest.raises(VideoError, match=r"cut\.heic") as caught:
        open_video(str(path))
    assert monotonic() - begin < SECONDS
    assert isinstance(caught.value, VideoUnreadable | VideoTooDamaged) and caught.value.remedy


def test_the_largest_picture_fits_into_the_memory_of_a_small_file(tmp_path: Path) -> None:
    path = heic_grid(tmp_path / "large.heic", (R, G, B, W), tile=4096, size=(8192, 4352))
    assert path.stat().st_size < 2**20
    info, frame = seen(path, isolated=True)
    assert (info.width, info.height, frame.rgb.shape) == (8192, 4352, (4352, 8192, 3))
    assert frame.rgb[10, 10].tolist() == pytest.approx(R, abs=2) and frame.rgb[-10, -10].tolist() == pytest.approx(
        W, abs=2
    )


def test_heic_is_an_image_by_its_name() -> None:
    assert all(map(is_image_name, ("IMG_0001.HEIC", "b.heif", "c.hif")))

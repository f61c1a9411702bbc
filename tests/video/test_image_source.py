"""Images as videos: recognised by content, upright and opaque, refused if damaged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT
from vidqa.errors import PictureTooLarge, VideoError, VideoTooDamaged, VideoUnreadable
from vidqa.types import Frame, VideoInfo
from vidqa.video.path_completion import is_image_name, is_video_name
from vidqa.video.reader import open_video

WIDE, TALL = 48, 32
RED, BLUE, WHITE, GRAY = (255, 0, 0), (0, 0, 255), (255, 255, 255), (128, 128, 128)


def two_halves(mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (WIDE, TALL), RED)
    picture.paste(BLUE, (WIDE // 2, 0, WIDE, TALL))
    return picture.convert(mode)


def seen(path: Path, *, isolated: bool = False) -> tuple[VideoInfo, list[Frame]]:
    with open_video(str(path), isolated=isolated) as reader:
        return reader.info, list(reader.frames(range(reader.info.frame_count)))


def looks_like(frame: Frame, x: int, y: int, colour: tuple[int, int, int]) -> bool:
    return bool(np.abs(frame.rgb[y, x].astype(int) - colour).max() <= 12)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_still_of_any_name_is_a_video_of_one_frame(tmp_path: Path, kind: str, isolated: bool) -> None:
    path = tmp_path / "clip.mp4"
    two_halves().save(path, format=kind)
    info, (frame,) = seen(path, isolated=isolated)
    assert (info.width, info.height, info.frame_count, info.pts_seconds) == (WIDE, TALL, 1, (0.0,))
    assert info.codec == kind.lower() and info.duration_seconds == 1.0
    assert frame.rgb.shape == (TALL, WIDE, 3) and frame.rgb.dtype == np.uint8 and frame.timestamp_seconds == 0.0
    assert looks_like(frame, 4, 4, RED) and looks_like(frame, WIDE - 5, 4, BLUE)


def test_an_index_given_twice_gives_the_frame_twice(tmp_path: Path) -> None:
    two_halves().save(tmp_path / "a.png")
    with open_video(str(tmp_path / "a.png")) as reader:
        first, second = reader.frames((0, 0))
        reader.check_coverage((0, 0))
    assert np.array_equal(first.rgb, second.rgb)


@pytest.mark.parametrize(
    ("orientation", "turned", "red_at"), [(1, 0, "left"), (3, 180, "right"), (6, 270, "top"), (8, 90, "bottom")]
)
def test_a_photo_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, turned: int, red_at: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    two_halves().save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    info, (frame,) = seen(tmp_path / "a.jpg")
    assert info.rotation_degrees == turned
    assert frame.rgb.shape[:2] == (info.height, info.width) == ((WIDE, TALL) if turned % 180 else (TALL, WIDE))
    middle_x, middle_y = info.width // 2, info.height // 2
    places = {
        "left": (2, middle_y), "right": (info.width - 3, middle_y),
        "top": (middle_x, 2), "bottom": (middle_x, info.height - 3),
    }  # fmt: skip
    opposite = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}[red_at]
    assert looks_like(frame, *places[red_at], RED) and looks_like(frame, *places[opposite], BLUE)


def half_transparent() -> Image.Image:
    picture = two_halves("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, WIDE // 2, TALL))
    return picture


def palette_with_a_hole() -> Image.Image:
    picture = Image.new("P", (WIDE, TALL), 0)
    picture.putpalette([0, 0, 0, *BLUE])
    picture.paste(1, (WIDE // 2, 0, WIDE, TALL))
    picture.info["transparency"] = 0
    return picture


@pytest.mark.parametrize("make", [half_transparent, palette_with_a_hole])
def test_what_is_transparent_is_white(tmp_path: Path, make: Callable[[], Image.Image]) -> None:
    make().save(tmp_path / "a.png")
    _, (frame,) = seen(tmp_path / "a.png")
    assert looks_like(frame, 4, 4, WHITE) and looks_like(frame, WIDE - 5, 4, BLUE)


def test_other_kinds_of_pixels_become_rgb(tmp_path: Path) -> None:
    two_halves("CMYK").save(tmp_path / "cmyk.tif")
    two_halves("P").save(tmp_path / "palette.png")
    for name in ("cmyk.tif", "palette.png"):
        _, (frame,) = seen(tmp_path / name)
        assert looks_like(frame, 4, 4, RED) and looks_like(frame, WIDE - 5, 4, BLUE)
    Image.fromarray(np.full((TALL, WIDE), 128 * 257, np.uint16)).save(tmp_path / "gray16.png")
    _, (frame,) = seen(tmp_path / "gray16.png")
    assert looks_like(frame, 4, 4, GRAY)
    ramp = np.linspace(-3.0, 5.0, WIDE * TALL, dtype=np.float32).reshape(TALL, WIDE)
    Image.fromarray(ramp).save(tmp_path / "float.tif")
    _, (frame,) = seen(tmp_path / "float.tif")
    assert frame.rgb[0, 0].tolist() == [0, 0, 0] and frame.rgb[-1, -1].tolist() == [255, 255, 255]


def shades(count: int) -> list[Image.Image]:
    return [Image.new("RGB", (WIDE, TALL), (10 * number,) * 3) for number in range(count)]


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("name", ["a.webp", "a.png"])
def test_an_animation_has_its_frames_and_their_times(tmp_path: Path, name: str, isolated: bool) -> None:
    first, *others = shades(6)
    durations = [100, 200, 50, 400, 100, 150]
    first.save(tmp_path / name, save_all=True, append_images=others, duration=durations, lossless=True)
    info, frames = seen(tmp_path / name, isolated=isolated)
    assert info.frame_count == 6 and not info.constant_rate
    assert info.pts_seconds == pytest.approx((0.0, 0.1, 0.3, 0.35, 0.75, 0.85))
    assert info.duration_seconds == pytest.approx(1.0) and info.fps == pytest.approx(6.0)
    assert [int(frame.rgb[0, 0, 0]) for frame in frames] == [0, 10, 20, 30, 40, 50]
    assert [frame.timestamp_seconds for frame in frames] == pytest.approx(info.pts_seconds)
    with open_video(str(tmp_path / name), isolated=isolated) as reader:
        for indices in ((1, 4, 4), (0, 5)):
            assert [int(frame.rgb[0, 0, 0]) for frame in reader.frames(indices)] == [10 * index for index in indices]


def test_frames_that_claim_no_time_take_a_tenth_of_a_second(tmp_path: Path) -> None:
    first, *others = shades(3)
    first.save(tmp_path / "a.webp", save_all=True, append_images=others, duration=0, lossless=True)
    info, _ = seen(tmp_path / "a.webp")
    assert info.pts_seconds == pytest.approx((0.0, 0.1, 0.2)) and info.constant_rate


def test_pages_are_not_frames(tmp_path: Path) -> None:
    first, *others = shades(3)
    first.save(tmp_path / "a.tif", save_all=True, append_images=others)
    assert seen(tmp_path / "a.tif")[0].frame_count == 1


def noise(path: Path, **options: object) -> bytes:
    pixels = np.random.default_rng(7).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path.read_bytes()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.bmp", "a.tif"])
def test_a_truncated_image_is_refused_by_name_with_a_remedy(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    data = noise(path)
    for share in (0.9, 0.5, 0.1):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(VideoError, match=name) as caught:
            open_video(str(path), isolated=False)
        assert caught.value.remedy


def animation_cut_at(path: Path, frames: int) -> Path:
    """An animated PNG of ten frames whose data ends in the frame after so many."""
    pictures = [
        Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)) for seed in range(10)
    ]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    data = path.read_bytes()
    controls = [place for place in range(len(data)) if data.startswith(b"fcTL", place)]
    path.write_bytes(data[: controls[frames] + 500])
    return path


def test_an_animation_that_breaks_off_is_noted_or_refused(tmp_path: Path) -> None:
    info, frames = seen(animation_cut_at(tmp_path / "a.png", 7))
    assert info.frame_count == len(frames) == 7
    assert info.notes == ("a.png looks truncated: 7 of 10 frames are there.",)
    with pytest.raises(VideoTooDamaged, match="3 of 10 frames"):
        open_video(str(animation_cut_at(tmp_path / "a.png", 3)), isolated=False)


def test_an_image_of_too_many_pixels_is_refused_with_its_numbers(tmp_path: Path) -> None:
    Image.new("1", (8000, 5000)).save(tmp_path / "large.png")
    with pytest.raises(VideoUnreadable, match="8000×5000 = 40,000,000 pixels; at most 35,651,584") as caught:
        open_video(str(tmp_path / "large.png"))
    assert "smaller" in caught.value.remedy
    for side in (10_000, 20_000):  # where Pillow warns, and where it refuses
        Image.new("1", (side, side)).save(tmp_path / "bomb.png")
        with pytest.raises(VideoUnreadable, match=r"bomb\.png"):
            open_video(str(tmp_path / "bomb.png"))


def test_a_long_image_passes_up_to_the_shape_that_the_model_takes(tmp_path: Path) -> None:
    Image.new("1", (30_000, 150)).save(tmp_path / "long.png")
    info, (frame,) = seen(tmp_path / "long.png")
    assert (info.width, info.height, frame.rgb.shape) == (30_000, 150, (150, 30_000, 3))
    Image.new("1", (30_000, 149)).save(tmp_path / "long.png")
    with pytest.raises(PictureTooLarge, match=r"long\.png has pictures of 30000×149, longer than 200:1"):
        seen(tmp_path / "long.png")


@pytest.mark.parametrize("kind", ["float", "transparent", "palette"])
def test_a_picture_of_many_strips_has_no_seam(tmp_path: Path, kind: str) -> None:
    rows, columns = np.mgrid[0:1300, 0:1700]  # 2.2 million pixels: three strips
    if kind == "float":
        Image.fromarray((rows + columns).astype(np.float32)).save(tmp_path / "a.tif")
        _, (frame,) = seen(tmp_path / "a.tif")
        expected = ((rows + columns) * (255 / 2998)).astype(np.uint8)
        assert np.array_equal(frame.rgb, np.repeat(expected[:, :, None], 3, axis=2))
        return
    shades = np.repeat(((rows + columns) % 256).astype(np.uint8)[:, :, None], 3, axis=2)
    picture = Image.fromarray(shades)
    if kind == "palette":
        picture = picture.convert("P")
        expected = np.asarray(picture.convert("RGB"))
    else:
        picture.putalpha(Image.fromarray((rows % 256).astype(np.uint8)))
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        expected = np.asarray(white.convert("RGB"))
    picture.save(tmp_path / "a.png")
    _, (frame,) = seen(tmp_path / "a.png")
    assert np.array_equal(frame.rgb, expected)


def test_the_tiles_of_an_avif_of_a_public_report_are_joined() -> None:
    path = ROOT.parent / "shared" / "failing" / "grid.avif"
    if not path.exists():
        pytest.skip(f"the file of the report is not here ({path})")
    info, (frame,) = seen(path)
    assert (info.frame_count, info.width, info.height) == (1, 512, 512)
    assert looks_like(frame, 10, 10, RED) and looks_like(frame, 501, 501, WHITE)


def test_images_and_videos_are_recognised_by_name() -> None:
    assert all(map(is_image_name, ("a.PNG", "b.jpeg", "c.webp", "d.tiff")))
    assert not any(map(is_image_name, ("a.mp4", "png", "b.gif")))
    assert is_video_name("b.gif") and not is_video_name("a.png")

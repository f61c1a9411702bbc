"""Files that promise or become too much: sides, shapes, pixel aspects, sizes that change, memory and time."""

import io
import struct
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from tests.clips import encode, numbered_picture, read_number, write_clip
from tests.decoders import scripted_decoder
from vidqa.config import CLIP_DEADLINE_SECONDS, EngineConfig
from vidqa.engine.session import Session
from vidqa.errors import PictureTooLarge, VideoTooDamaged, VideoUnreadable
from vidqa.types import Frame, Request
from vidqa.video import decoder_worker
from vidqa.video.reader import DecoderProcess, Decoding, open_video
from vidqa.video.size_limits import (
    MAX_ASPECT,
    MAX_SIDE,
    check_picture_size,
    decoding_limit_bytes,
    decoding_threads,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("width", "height", "aspect", "words"),
    [
        (8000, 5000, 1.0, "8000×5000 = 40,000,000 pixels; at most 35,651,584"),
        (64, 458_753, 1.0, "64×458753; a side of at most 32,767"),
        (MAX_SIDE + 1, 1000, 1.0, "32768×1000; a side of at most 32,767"),
        (64, 64 * MAX_ASPECT + 1, 1.0, "64×12801, longer than 200:1"),
        (568, 320, 46_521.26, "46,521.3 times as wide as high: its pictures of 568×320 are shown at 26,424,075.7×320;"),
        (640, 320, 101.0, "shown at 64,640.0×320; a side of at most 32,767"),
        (32, 320, 1 / 32, "shown at 1.0×320, longer than 200:1"),
        (64, 64 * MAX_ASPECT + 1, 200.0, "64×12801, longer than 200:1"),  # as shown it would do
        (100, 100, 2.0**62, "×100; a side"),
    ],
)
def test_a_picture_that_is_too_large_is_refused_with_its_numbers(
    width: int, height: int, aspect: float, words: str
) -> None:
    with pytest.raises(PictureTooLarge) as caught:
        check_picture_size("a.mp4", width, height, aspect)
    assert words in caught.value.what and caught.value.what.startswith("a.mp4 ")
    assert "ffmpeg -i IN" in caught.value.remedy


@pytest.mark.parametrize(
    ("width", "height", "aspect"),
    [
        (8192, 4352, 1.0), (MAX_SIDE, 1000, 1.0), (64, 64 * MAX_ASPECT, 1.0), (1, 1, 1.0), (720, 576, 64 / 45),
        (320, 320, 100.0),         (2, 400, 2.0), (0, 0, 46_521.0),
    ],
)  # fmt: skip
def test_a_picture_within_the_limits_passes(width: int, height: int, aspect: float) -> None:
    check_picture_size("a.mp4", width, height, aspect)


def test_memory_and_threads_follow_the_size_of_the_file() -> None:
    assert decoding_limit_bytes(0) == 560 * MIB
    assert decoding_limit_bytes(10 * MIB) == 1200 * MIB
    assert decoding_limit_bytes(2**40) == 12 * 2**30
    assert decoding_threads(2_000, 1920, 1080, 16) == 16
    assert decoding_threads(2_000, 3840, 2160, 16) == 7
    assert decoding_threads(2_000, 3840, 2160, 16, hdr=True) == 3
    assert decoding_threads(2_000, 8192, 4352, 16) == 1
    assert decoding_threads(100 * MIB, 8192, 4352, 16) == 16
    assert decoding_threads(2_000, 0, 0, 10) == 10


def webp_of(path: Path, width: int, height: int) -> Path:
    """An animated WebP whose canvas was enlarged in its header."""
    first, *others = [Image.fromarray(numbered_picture(number, 64, 64)) for number in range(6)]
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, lossless=True)
    data = bytearray(file.getvalue())
    at = data.index(b"VP8X") + 12  # size and flags are 4 bytes each; both sides are stored less 1, in 3 bytes
    data[at : at + 6] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    path.write_bytes(data)
    return path


def peak_bytes(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


@pytest.mark.parametrize(
    ("width", "height", "words"),
    [(64, 458_753, "side of at most 32,767"), (64, 65_537, "side of"), (64, 20_000, "longer than 200:1")],
)
def test_a_webp_is_refused_before_its_canvas_is_made(tmp_path: Path, width: int, height: int, words: str) -> None:
    path = webp_of(tmp_path / "tall.webp", width, height)
    with pytest.raises(PictureTooLarge, match=words):
        open_video(str(path), isolated=False)
    decoder = DecoderProcess((sys.executable, "-m", "vidqa.video.decoder_worker"), Decoding())
    try:
        with pytest.raises(PictureTooLarge, match=rf"tall\.webp has pictures of {width}×{height}"):
            decoder.open(str(path))
        if sys.platform == "linux":
            assert peak_bytes(decoder._process.pid) < 150 * MIB  # a canvas of 64×458,753 is 112 MiB, and there are four
    finally:
        decoder.close()


def clip_with_aspect(path: Path, across: int, down: int) -> Path:
    """A clip of 96×64 whose `pasp` box was overwritten: FFmpeg's own muxer writes no absurd one."""
    pictures = [numbered_picture(number, 96, 64) for number in range(3)]
    data = encode(path, pictures, sample_aspect_ratio=Fraction(4, 3)).read_bytes()
    assert data.count(b"pasp\0\0\0\4\0\0\0\3") == 1
    path.write_bytes(data.replace(b"pasp\0\0\0\4\0\0\0\3", b"pasp" + struct.pack(">II", across, down)))
    return path


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("extension", ["mov", "mp4"])
def test_a_pixel_aspect_that_makes_a_ribbon_is_refused(tmp_path: Path, extension: str, isolated: bool) -> None:
    for across, down, words in (
        (46_521, 1, "46,521 times as wide as high: its pictures of 96×64 are shown at 4,466,016.0×64; a side"),
        (1, 400, "shown at 0.2×64, longer than 200:1"),
        (2**31 - 1, 1, "shown at 206,158,430,112.0×64; a side"),
    ):
        path = clip_with_aspect(tmp_path / f"ribbon.{extension}", across, down)
        with pytest.raises(PictureTooLarge, match=words) as caught:
            open_video(str(path), isolated=isolated)
        assert "-aspect" in caught.value.remedy
    for across, down in ((0, 0), (0, 7)):  # as players do
        with open_video(str(clip_with_aspect(path, across, down)), isolated=isolated) as reader:
            assert (reader.info.width, reader.info.height) in {(96, 64), (128, 64)}  # the codec's own is 4:3


def growing_clip(path: Path, before: int, after: int) -> Path:
    """A transport stream whose pictures are 64×64 and then 64×16,000."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for height, numbers in ((64, range(before)), (16_000, range(before, before + after))):
            encoder: Any = av.CodecContext.create("libx264", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, height, "yuv420p", Fraction(1, 25)
            encoder.options = {"g": "5", "bf": "0"}
            for number in [*numbers, None]:
                frame = None if number is None else av.VideoFrame.from_ndarray(numbered_picture(number, 64, height))
                if frame is not None:
                    frame.pts, frame.time_base = number, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream = stream
                    container.mux(packet)
    return path


@pytest.mark.parametrize("isolated", [True, False])
def test_a_stream_that_grows_ends_where_it_does(tmp_path: Path, isolated: bool) -> None:
    with open_video(str(growing_clip(tmp_path / "grows.ts", 20, 10)), isolated=isolated) as reader:
        assert (reader.info.width, reader.info.height, reader.info.frame_count) == (64, 64, 30)
        indices = range(0, 30, 3)
        frames = list(reader.frames(indices))
        assert [read_number(frame.rgb) for frame in frames] == list(range(0, 20, 3))
        assert {frame.rgb.shape for frame in frames} == {(64, 64, 3)}
        reader.check_coverage(indices)
        assert "7 of 10 frames" in reader.notes[-1] and "grows.ts has pictures of 64×16000" in reader.notes[-1]
        late = (22, 25, 29)
        assert list(reader.frames(late)) == []
        with pytest.raises(VideoTooDamaged, match=r"0 of 3 frames .*64×16000, longer than 200:1"):
            reader.check_coverage(late)


def test_an_error_is_sent_after_the_frames_before_it() -> None:
    class Breaking:
        stopped = ""

        def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
            for index in indices[:2]:
                yield Frame(index, 0.0, numbered_picture(index, 64, 64))
            raise VideoUnreadable("It broke.", "Mend it.")

    out = io.BytesIO()
    with pytest.raises(VideoUnreadable, match="It broke"):
        decoder_worker._send_frames(Breaking(), __file__, [3, 4, 5], out)  # type: ignore[arg-type]
    sent = out.getvalue()
    assert sent.count(b'"index": 3') == sent.count(b'"index": 4') == 1
    assert len(sent) > 2 * 64 * 64 * 3  # whole, before the error can be written


_SMALL_DECODER = """
from vidqa.video import decoder_worker, size_limits
size_limits.decoding_limit_bytes = lambda file_bytes: 240 * 2**20
decoder_worker.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts all that a process allocates")
def test_memory_out_of_proportion_is_refused_and_the_decoder_goes_on(tmp_path: Path) -> None:
    Image.new("RGBA", (6000, 5800), "red").save(tmp_path / "red.png")  # 133 MiB, and 100 as RGB
    write_clip(tmp_path / "8k.mp4", 3, size=(8192, 4320), options={"preset": "ultrafast"})
    write_clip(tmp_path / "small.mp4", 3)
    decoder = DecoderProcess((sys.executable, "-c", _SMALL_DECODER), Decoding())
    try:
        for name in ("red.png", "8k.mp4"):
            with pytest.raises(
                VideoUnreadable, match=rf"{name} takes more memory to decode than the 240\.0 MiB"
            ) as caught:
                decoder.open(str(tmp_path / name))
                list(decoder.frames((0, 2)))
            assert "smaller" in caught.value.remedy
        assert decoder.open(str(tmp_path / "small.mp4")).frame_count == 3
        assert len(list(decoder.frames((0, 2)))) == 2
    finally:
        decoder.close()


def gif_of(path: Path, width: int, height: int, frames: int) -> Path:
    """A GIF of one pixel a frame: 23 bytes each for any size of its canvas."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes((0, 0, 0, 255, 255, 255))
    control = b"\x21\xf9\x04\0\x0a\0\0\0"  # 0.1 s
    pixels = [b"\x02\x02" + (4 | shade << 3 | 5 << 6).to_bytes(2, "little") + b"\0" for shade in (0, 1)]
    place = [b"," + struct.pack("<HHHHB", number % width, 0, 1, 1, 0) for number in range(frames)]
    path.write_bytes(screen + b"".join(control + at + pixels[number % 2] for number, at in enumerate(place)) + b";")
    return path


def test_a_gif_of_2000_huge_frames_ends_at_the_clips_deadline(tmp_path: Path) -> None:
    path = gif_of(tmp_path / "bomb.gif", 8000, 4400, 2000)
    assert path.stat().st_size < 47_000
    config = EngineConfig(model="demo", device="cpu", clip_deadline_seconds=4.0)
    with Session(config) as session, pytest.raises(VideoUnreadable) as caught:
        session.see(Request(str(path), "what happens?", frames=8))
    assert caught.value.what.startswith("bomb.gif kept the decoder busy for 4 s in all, the deadline for one video")
    assert "--deadline" in caught.value.remedy and "--end" in caught.value.remedy


def test_a_video_has_a_deadline_unless_another_is_given() -> None:
    assert EngineConfig().clip_deadline_seconds == Decoding().clip_deadline_seconds == CLIP_DEADLINE_SECONDS == 600.0


def test_each_request_for_frames_has_the_whole_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted_decoder(tmp_path, monkeypatch)  # a frame every 0.2 s
    path = write_clip(tmp_path / "slow_frames.mp4", 10)
    with open_video(str(path), clip_deadline_seconds=5.0) as reader:
        for _ in range(4):
            assert len(list(reader.frames(range(8)))) == 8  # 1.6 s each, 6.4 s in all

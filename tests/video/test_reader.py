"""Decoding: exactly a linear decode's frames, from a process that can be killed."""

import hashlib
import sys
import time
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from tests.clips import read_number, write_clip
from vidqa.errors import VideoError, VideoNotFound, VideoTooDamaged, VideoUnreadable
from vidqa.types import Frame
from vidqa.video.reader import DecoderProcess, Decoding, VideoReader, open_video

CODECS = {
    "h264-b-frames": ("libx264", {"x264-params": "bframes=3:b-pyramid=normal:keyint=50:scenecut=0"}),
    "h264-open-gop": ("libx264", {"x264-params": "open-gop=1:bframes=3:keyint=25"}),
    "h264-intra": ("libx264", {"g": "1"}),
    "h265": ("libx265", {"x265-params": "keyint=40:log-level=none"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "30"}),
    "mpeg4": ("mpeg4", {"g": "20", "bf": "2", "qscale": "4"}),
}


def digest(frame: Frame) -> str:
    return hashlib.sha256(frame.rgb.tobytes()).hexdigest()


def matrix(picture: av.VideoFrame) -> str | None:
    """Untagged colours are BT.709 from 720 lines on, and FFmpeg's BT.601 below."""
    return "itu709" if picture.colorspace == 2 and picture.height >= 720 else None


def linear_digests(path: Path, stream: int | None = None) -> list[str]:
    """Hashes of every frame of a plain decode from start to end (or damage)."""
    digests: list[str] = []
    first: av.VideoFrame | None = None
    with av.open(str(path)) as container:
        chosen = container.streams.video[0] if stream is None else container.streams[stream]
        try:
            for picture in container.decode(chosen):
                first = first or picture  # others of its form are shown in its size
                rgb = picture.to_ndarray(
                    format="rgb24", width=first.width, height=first.height, src_colorspace=matrix(picture)
                )
                upright = np.rot90(rgb, round((picture.rotation or 0) / 90) % 4)
                digests.append(hashlib.sha256(np.ascontiguousarray(upright).tobytes()).hexdigest())
        except av.FFmpegError:
            pass
    return digests


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("isolated", [True, False])
def test_sparse_frames_equal_a_linear_decode(tmp_path: Path, codec: str, isolated: bool) -> None:
    name, options = CODECS[codec]
    path = write_clip(tmp_path / ("clip.mkv" if codec == "vp9" else "clip.mp4"), 120, codec=name, options=options)
    expected = linear_digests(path)
    for indices in ((0, 17, 18, 60, 119), (5,), (118, 119), tuple(range(0, 120, 2)), (49, 50, 51)):
        with open_video(str(path), isolated=isolated) as reader:
            frames = list(reader.frames(indices))
        assert [frame.index for frame in frames] == list(indices)
        assert [digest(frame) for frame in frames] == [expected[index] for index in indices]
        assert [read_number(frame.rgb) for frame in frames] == list(indices)


def test_one_reader_serves_several_requests_in_any_order(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 100, options={"g": "20"})
    with open_video(str(path)) as reader:
        for indices in ((70, 90), (0, 10), (10, 10, 11)):
            assert [read_number(frame.rgb) for frame in reader.frames(indices)] == list(indices)


def test_timestamps_of_a_variable_rate_are_the_files_own(tmp_path: Path) -> None:
    pts = [0, 40, 80, 500, 540, 2000, 2040, 2500]
    path = write_clip(tmp_path / "clip.mkv", 8, pts=pts)
    with open_video(str(path)) as reader:
        assert not reader.info.constant_rate
        assert [round(frame.timestamp_seconds * 1000) for frame in reader.frames(range(8))] == pts


def test_a_start_other_than_zero_is_subtracted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", 10, pts=[5000 + 40 * index for index in range(10)])
    with open_video(str(path)) as reader:
        assert reader.info.start_seconds == pytest.approx(5.0, abs=0.1)
        assert [frame.timestamp_seconds for frame in reader.frames((0, 9))] == pytest.approx([0.0, 0.36])


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (None, VideoNotFound, "no video"),
        (b"", VideoUnreadable, "empty"),
        (b"just some text, no video at all\n" * 40, VideoUnreadable, "cannot be read"),
        (b"ffconcat version 1.0\nfile other.mp4\n", VideoUnreadable, "cannot be read"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n", VideoUnreadable, "cannot be read"),
    ],
)
@pytest.mark.parametrize("isolated", [True, False])
def test_a_file_that_is_no_video_is_refused(
    tmp_path: Path, content: bytes | None, kind: type[VideoError], words: str, isolated: bool
) -> None:
    write_clip(tmp_path / "other.mp4", 3)
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(kind, match=words) as caught:
        open_video(str(path), isolated=isolated)
    assert caught.value.remedy


def test_a_folder_and_an_address_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoNotFound, match="folder"):
        open_video(str(tmp_path))
    with pytest.raises(VideoNotFound, match="address"):
        open_video("http://127.0.0.1/clip.mp4")


def truncated(tmp_path: Path, keep: float) -> Path:
    """A clip of 8 s whose data ends early; Matroska reports no error for that."""
    data = write_clip(tmp_path / "whole.mkv", 200, options={"g": "25"}).read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def test_a_truncated_file_is_noted_and_the_rest_is_used(tmp_path: Path) -> None:
    with open_video(str(truncated(tmp_path, 0.8))) as reader:
        assert 100 < reader.info.frame_count < 190
        assert "cut.mkv looks truncated" in reader.notes[0]
        assert "of 8.0 s are there" in reader.notes[0]
        frames = list(reader.frames(range(0, reader.info.frame_count, 10)))
        assert [read_number(frame.rgb) for frame in frames] == [frame.index for frame in frames]


def test_a_file_truncated_before_its_middle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoTooDamaged, match=r"of 8\.0 s are there"):
        open_video(str(truncated(tmp_path, 0.4)))


def test_a_video_damaged_before_its_middle_is_refused(real_clips: Path, tmp_path: Path) -> None:
    with open_video(str(real_clips / "corrupted.mp4")) as reader:
        indices = tuple(range(0, 50, 5))
        assert len(list(reader.frames(indices))) == 6  # 28 of 50 frames can be decoded
        reader.check_coverage(indices)
        assert "6 of 10 frames were decoded, until 0:02.5 of 0:04.5" in reader.notes[-1]
    with open_video(str(real_clips / "corrupted.mp4")) as reader:
        indices = (20, 30, 40, 49)
        list(reader.frames(indices))
        with pytest.raises(VideoTooDamaged, match="1 of 4 frames"):
            reader.check_coverage(indices)


def children() -> set[int]:
    """Processes of this one, ended ones that were not waited for among them; other tests' models may have some."""
    return {child.pid for child in psutil.Process().children()}


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import time; time.sleep(60)", "kept the decoder busy for 0.3 s"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "was killed by SIGSEGV"),
        ("raise SystemExit(3)", "ended with code 3"),
    ],
)
def test_a_decoder_that_hangs_or_dies_is_reported_and_leaves_no_process(script: str, words: str) -> None:
    began, before = time.monotonic(), children()
    how = Decoding(deadline_seconds=0.3 if "sleep" in script else 30)
    with pytest.raises(VideoUnreadable, match=words):
        DecoderProcess((sys.executable, "-c", script), how).open(__file__)
    assert time.monotonic() - began < 20
    assert children() <= before


def test_closing_in_the_middle_ends_the_process(tmp_path: Path) -> None:
    path, before = write_clip(tmp_path / "clip.mp4", 100), children()
    reader = open_video(str(path))
    assert next(iter(reader.frames(range(100)))).index == 0
    assert children() > before
    reader.close()
    assert children() <= before


UNREADABLE_CLIPS = ("audio_only.webm", "invalid_codec.mp4", "no_stream.mp4", "decompression_bomb.gif")


def spread(reader: VideoReader) -> list[int]:
    return sorted(set(np.linspace(0, reader.info.frame_count - 1, 9).round().astype(int).tolist()))


def test_every_real_clip_is_read_exactly_or_refused_clearly(real_clips: Path) -> None:
    seen = 0
    for path in sorted(real_clips.iterdir()):
        if path.suffix == ".md":
            continue
        seen += 1
        if path.name in UNREADABLE_CLIPS:
            with pytest.raises(VideoUnreadable) as caught:
                open_video(str(path))
            assert caught.value.remedy and path.name in caught.value.what
            continue
        with open_video(str(path)) as reader:
            stream = 3 if path.name.startswith("nasa") else None  # the larger of its two pictures
            expected = linear_digests(path, stream)
            frames = list(reader.frames(spread(reader)))
            assert [digest(frame) for frame in frames] == [expected[frame.index] for frame in frames], path.name
            complete = path.name != "corrupted.mp4"
            assert (len(frames) == len(spread(reader))) == complete
    assert seen > 20


def test_rotation_turns_the_picture_upright(real_clips: Path) -> None:
    sizes = {}
    for angle in (0, 90, 180, 270):
        with open_video(str(real_clips / f"rotated_{angle}.mov")) as reader:
            frame = next(iter(reader.frames((0,))))
            assert frame.rgb.shape[:2] == (reader.info.height, reader.info.width)
            sizes[angle] = (reader.info.width, reader.info.height, reader.info.rotation_degrees)
    assert sizes == {0: (568, 320, 0), 90: (320, 568, 270), 180: (568, 320, 180), 270: (320, 568, 90)}

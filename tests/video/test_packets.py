"""Packet times from a container's index equal those of its demuxed packets, or the index is not used."""

import random
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.clips import add_sound, read_number, remux, write_clip
from tests.video.test_hard_files import FRAMES, STRUCTURES
from vidqa.errors import VideoError
from vidqa.video.container import open_container
from vidqa.video.frame_decoder import FrameSource
from vidqa.video.packets import PacketTable, demux_packets, packets_from_index
from vidqa.video.probe import probe
from vidqa.video.stream_selection import select_stream

INDEXED = {
    "recovery points, no other keyframe", "16 B-frames", "fields", "open HEVC groups", "hidden reference pictures",
}  # fmt: skip
B_FRAMES = {"x264-params": "bframes=3:keyint=20:scenecut=0"}


@pytest.fixture(autouse=True)
def few_packets_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of a short clip is then as far from the comparison as in a long one."""
    monkeypatch.setattr("vidqa.video.container_index._COMPARED_PACKETS", 3)


def both(path: Path) -> tuple[PacketTable | None, PacketTable]:
    """The table looked up and read, each from a fresh container."""
    with open_container(str(path)) as first, open_container(str(path)) as second:
        found = packets_from_index(str(path), first, select_stream(first, str(path)))
        return found, demux_packets(second, select_stream(second, str(path)))


def check_same(path: Path) -> bool:
    """Whether a table was found; it must then be the one that was read."""
    found, expected = both(path)
    if found is not None:
        assert (found.pts, found.end) == (expected.pts, expected.end), path.name
        assert (found.usable, found.in_order) == (expected.usable, expected.in_order), path.name
        assert [pts for pts, _ in found.keyframes] == [pts for pts, _ in expected.keyframes], path.name
    return found is not None


@pytest.mark.parametrize("name", STRUCTURES)
def test_any_group_structure(tmp_path: Path, name: str) -> None:
    extension, codec, options = STRUCTURES[name]
    path = write_clip(tmp_path / f"clip.{extension}", FRAMES, codec=codec, options=options)
    assert check_same(path) == (name in INDEXED)


def uneven(frames: int) -> list[int]:
    draw = random.Random(3)
    return [index * 40 + draw.randrange(30) for index in range(frames)]


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
def test_variable_rates_shifts_edits_and_holes(tmp_path: Path, extension: str) -> None:
    steady = write_clip(tmp_path / "steady.mp4", 200, options=B_FRAMES)
    varied = write_clip(tmp_path / "varied.mp4", 200, options=B_FRAMES, pts=uneven(200))
    for whole in (steady, varied):
        for name, shift in (("plain", 0), ("late", 30), ("cut", -10)):
            path = remux(whole, tmp_path / f"{whole.stem}-{name}.{extension}", shift_frames=shift)
            assert check_same(path), path.name
        remux(whole, tmp_path / f"holed.{extension}", drop=lambda place: 70 < place < 90)
        check_same(tmp_path / f"holed.{extension}")


@pytest.mark.parametrize("extension", ["mp4", "mkv"])
@pytest.mark.parametrize("options", [{}, {"movflags": "negative_cts_offsets"}, {"movflags": "faststart"}])
def test_sound_beside_the_picture(tmp_path: Path, extension: str, options: dict[str, str]) -> None:
    plain = write_clip(tmp_path / "plain.mp4", 200, options=B_FRAMES)
    assert check_same(add_sound(plain, tmp_path / f"loud.{extension}", 8.0, options=options))


@pytest.mark.parametrize("name", ["fragments.mp4", "no-index.mkv", "cut.mp4", "cut.mkv", "clip.ts"])
def test_unusual_files_are_demuxed(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    movflags = {"movflags": "frag_keyframe+empty_moov"} if "fragments" in name else {"movflags": "faststart"}
    remux(write_clip(tmp_path / "plain.mp4", 100, options=B_FRAMES), path, options=movflags)
    data = path.read_bytes()
    if name.startswith("cut"):
        path.write_bytes(data[: len(data) * 9 // 10])
    if name.startswith("no-index"):
        path.write_bytes(data.replace(b"\x1c\x53\xbb\x6b", b"\x1c\x53\xbb\x6c"))
    found, expected = both(path)
    assert found is None and expected.pts


def test_the_index_of_a_mutant_is_exact_or_not_used(tmp_path: Path) -> None:
    draw, found = random.Random(11), 0
    whole = write_clip(tmp_path / "whole.mp4", 200, options=B_FRAMES, pts=uneven(200))
    for path in (remux(whole, tmp_path / f"clip.{extension}") for extension in ("mp4", "mkv")):
        data = path.read_bytes()
        begin = max(data.find(b"moov"), 0)  # the tables, or anything
        for _ in range(150):
            mutant = bytearray(data)
            for _ in range(draw.choice((1, 1, 3))):
                mutant[draw.randrange(draw.choice((0, begin)), len(data))] = draw.choice(
                    (0, 1, 255, draw.randrange(256))
                )
            path.write_bytes(mutant)
            try:
                table, expected = both(path)
            except (VideoError, av.FFmpegError):
                continue
            if table is not None:
                found += 1
                assert (table.pts, table.end, table.usable) == (expected.pts, expected.end, expected.usable)
    assert found > 50


def long_clip(path: Path, frames: int, unique: int = 50) -> Path:
    """Numbered frames with B-frames; one encoded group repeated, so that it takes a second."""
    with av.open(str(write_clip(path.with_name("group.mp4"), unique, options=B_FRAMES | {"g": str(unique)}))) as group:
        template = group.streams.video[0]
        packets = [packet for packet in group.demux(template) if packet.size]
        step = round(1 / 25 / float(template.time_base or 1))
        with av.open(str(path), "w") as out:
            stream: Any = out.add_stream_from_template(template)
            for start in range(0, frames, unique):
                for packet in packets:
                    copy = av.Packet(bytes(packet))
                    copy.stream, copy.is_keyframe = stream, packet.is_keyframe
                    copy.time_base, copy.duration = Fraction(template.time_base or 1), step
                    copy.pts, copy.dts = (packet.pts or 0) + start * step, (packet.dts or 0) + start * step
                    out.mux(copy)
    return path


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
def test_a_long_clip_gives_the_frames_of_its_times(tmp_path: Path, extension: str) -> None:
    path = long_clip(tmp_path / f"long.{extension}", 12_000)
    assert check_same(path) == (extension != "ts")
    opened = probe(str(path))
    assert opened.info.frame_count == 12_000 and opened.info.constant_rate and not opened.linear
    assert opened.pts == both(path)[1].pts
    source = FrameSource(opened)
    indices = (0, 7, 5_999, 6_000, 11_949, 11_999)
    assert [read_number(frame.rgb) for frame in source.frames(indices)] == [index % 50 for index in indices]
    source.close()


def test_real_clips(real_clips: Path) -> None:
    found = 0
    for path in sorted(real_clips.iterdir()):
        if path.suffix != ".md" and path.name not in ("audio_only.webm", "invalid_codec.mp4", "no_stream.mp4"):
            found += check_same(path)
    assert found > 15


def test_a_plan_opens_a_video_without_numpy(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", 5)
    code = (
        "import sys\nfrom vidqa.video.reader import open_video\n"
        f"with open_video({str(path)!r}, isolated=False) as reader: assert reader.info.frame_count == 5\n"
        "sys.stderr.write(' '.join(name for name in ('torch', 'numpy') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""

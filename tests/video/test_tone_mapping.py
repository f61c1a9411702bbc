"""HDR clips become BT.709: expected values in closed form, and from FFmpeg's scaler where it does not clip."""

import sys
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorTrc

from tests.video.hdr_clips import BT709, BT2020, HLG, PQ, TO_BT2020, columns, hdr_clip, hlg_code, limited, pq_code
from vidqa.video.reader import open_video
from vidqa.video.tone_mapping import ToneMapper, compressed, hlg_nits, is_hdr, pq_nits

NOTES = {PQ: "The video is HDR (PQ): tone-mapped to BT.709.", HLG: "The video is HDR (HLG): tone-mapped to BT.709."}


def greys(codes: np.ndarray) -> np.ndarray:
    return limited(np.repeat(np.asarray(codes, float)[:, None], 3, 1))


def codes_of(nits: np.ndarray, transfer: int) -> np.ndarray:
    """R'G'B' codes (n, 3) of light (n, 3) in cd/m²."""
    coded: np.ndarray = pq_code(nits) if transfer == PQ else hlg_code(nits)
    return coded


def shown(tmp_path: Path, frame: av.VideoFrame, isolated: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """A line (width, 3) of the picture that the reader gives, and the notes."""
    path = hdr_clip(tmp_path / f"clip-{frame.color_trc}-{frame.format.name}.mkv", [frame] * 3)
    with open_video(str(path), isolated=isolated) as reader:
        (picture,) = reader.frames((1,))
        return picture.rgb[16].astype(int), reader.notes


def test_the_curves_have_the_standards_values() -> None:
    codes = np.array([0.0, 0.508078, 0.580689, 0.751827, 1.0])  # BT.2408: 58 % is 203, 75 % is 1,000 cd/m²
    assert pq_nits(codes) == pytest.approx([0, 100, 203, 1000, 10_000], rel=1e-4)
    grey = np.array([[0.0] * 3, [0.5] * 3, [0.75] * 3, [1.0] * 3])  # BT.2100: 0.5 is 1/12 of the scene's light
    assert hlg_nits(grey)[:, 0] == pytest.approx([0, 1000 * (1 / 12) ** 1.2, 203, 1000], rel=2e-3)
    # 1.5 · 0.5807 / 0.7518 - 0.5 = 0.6585 of the peak's code is 86 cd/m²
    assert compressed(np.array([1.0, 50.0, 85.0])) == pytest.approx([1, 50, 85], rel=1e-6)
    assert compressed(np.array([203.0, 1000.0, 10_000.0])) == pytest.approx([159, 203, 203], rel=2e-3)


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_greys_have_their_documented_levels(tmp_path: Path, transfer: int, isolated: bool) -> None:
    nits = np.array([0, 0.1, 1, 10, 50, 80, 203, 400, 1000])
    codes = codes_of(np.repeat(nits[:, None], 3, 1), transfer)
    line, notes = shown(tmp_path, columns(limited(codes), transfer), isolated)
    assert np.ptp(line, axis=1).max() <= 1  # greys stay grey
    below = 255 * (nits[:6] / 203) ** (1 / 2.4)  # as BT.1886 shows them: 0, 11, 28, 73, 142, 173
    assert line[:6, 1] == pytest.approx(below, abs=2)
    # 159 of 203 cd/m² by BT.2390 are 230; the peak is white
    assert line[6:, 1] == pytest.approx([230, 251, 255], abs=1.5)
    assert notes == (NOTES[transfer],)


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_ramps_rise_in_steps_as_small_as_ten_bits_allow(tmp_path: Path, transfer: int) -> None:
    line, _ = shown(tmp_path, columns(greys((np.arange(64, 941) - 64) / 876), transfer))
    steps = np.diff(line[:, 1])
    assert steps.min() >= 0 and steps[20:].max() <= 2 and len(set(line[:, 1])) > 240
    assert line[0].max() == 0 and line[-1].min() >= 254


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_colours_of_bt709_below_the_knee_come_back(tmp_path: Path, transfer: int) -> None:
    random = np.random.default_rng(0)
    colours = random.uniform(0.35, 0.66, (300, 3))  # 0.66 is 75 cd/m²
    nits = 203 * colours**2.4 @ TO_BT2020.T
    frame = columns(limited(codes_of(nits, transfer)), transfer)
    line, _ = shown(tmp_path, frame)
    off = np.abs(line - 255 * colours)
    assert off.max() < 4 and off.mean() < 1  # 10 bits of PQ are a step of 1 level in the colours' differences
    plain = np.abs(frame.to_ndarray(format="rgb24")[0] - 255 * colours)
    assert plain.mean() > 12  # read as if it were BT.709


@pytest.mark.long
@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_greys_below_the_knee_are_those_of_ffmpegs_scaler(transfer: int) -> None:
    nits = np.repeat(np.linspace(0, 85, 64)[:, None], 3, 1)
    frame = columns(limited(codes_of(nits, transfer)), transfer)
    theirs = frame.reformat(  # relative colorimetric: no tone curve, but the same reference white
        format="rgb24",
        dst_colorspace="itu709",
        dst_color_trc=ColorTrc.BT709,
        dst_color_primaries=ColorPrimaries.BT709,
    ).to_ndarray()
    ours = ToneMapper().mapped(frame, alpha=False)
    assert np.abs(ours.astype(int) - theirs).max() <= 2


@pytest.mark.parametrize("transfer", [PQ, HLG])
def test_primaries_are_clipped_to_those_of_bt709(tmp_path: Path, transfer: int) -> None:
    light = np.eye(3)[[0, 1, 2]] * 150
    line, _ = shown(tmp_path, columns(limited(codes_of(light, transfer)), transfer))
    for channel in range(3):
        others = np.delete(line[channel], channel)
        assert line[channel][channel] > 200 and others.max() <= 12, line[channel]


def test_highlights_keep_their_hue(tmp_path: Path) -> None:
    orange = np.array([[1.0, 0.4, 0.1]])
    nits = np.concatenate([orange * 80, orange * 800]) @ TO_BT2020.T
    line, _ = shown(tmp_path, columns(limited(pq_code(nits)), PQ))
    dark, bright = (line / 255) ** 2.4
    assert bright.max() > 2 * dark.max()
    assert bright / bright.max() == pytest.approx(dark / dark.max(), abs=0.03)


def test_primaries_of_bt709_are_not_converted() -> None:
    yuv = limited(pq_code(np.array([[60.0, 20.0, 10.0]])))
    frame = columns(np.repeat(yuv, 32, 0), PQ, primaries=BT709)
    line = ToneMapper().mapped(frame, alpha=False)[0, 0]
    assert line == pytest.approx(255 * (np.array([60, 20, 10]) / 203) ** (1 / 2.4), abs=2.5)


def test_an_unknown_matrix_and_unknown_primaries_are_those_of_bt2020() -> None:
    yuv = limited(pq_code(np.random.default_rng(0).uniform(5, 80, (32, 3))))
    tagged = ToneMapper().mapped(columns(yuv, PQ), alpha=False)
    for matrix, primaries in ((2, 2), (9, 2), (2, 9), (9, 77)):
        frame = columns(yuv, PQ, primaries=primaries)
        frame.colorspace = matrix
        assert np.array_equal(ToneMapper().mapped(frame, alpha=False), tagged)


@pytest.mark.parametrize("transfer", [0, 1, 2, 3, 6, 8, 11, 13, 14, 15, 17, 99, 255])
def test_other_transfers_pass_untouched(tmp_path: Path, transfer: int) -> None:
    frame = columns(greys(np.linspace(0, 1, 64)), transfer)
    assert not is_hdr(frame)
    path = hdr_clip(tmp_path / "clip.mkv", [frame] * 3)
    with open_video(str(path), isolated=False) as reader:
        (picture,) = reader.frames((1,))
        assert np.array_equal(picture.rgb, frame.to_ndarray(format="rgb24")) and reader.notes == ()


@pytest.mark.parametrize(
    ("codec", "name", "options"),
    [
        ("libx265", "a.mp4", {"x265-params": "crf=4:keyint=20:log-level=none"}),
        ("libx264", "a.mkv", {"crf": "4", "g": "20"}),
        ("libsvtav1", "a.mp4", {"crf": "10", "preset": "10", "g": "20"}),
    ],
)
def test_codecs_of_ten_bits_are_recognized(tmp_path: Path, codec: str, name: str, options: dict[str, str]) -> None:
    nits = np.array([0.0, 1, 10, 50, 80, 203, 400, 1000]).repeat(16)
    luma = limited(np.repeat(pq_code(nits)[:, None], 3, 1))
    frames = [columns(luma, PQ, height=96).reformat(format="yuv420p10le") for _ in range(50)]
    path = hdr_clip(tmp_path / name, frames, codec, options=options)
    with open_video(str(path), isolated=False) as reader:
        for frame in reader.frames((0, 33, 49)):
            levels = frame.rgb[48, 8::16].astype(int)
            assert levels[:, 1] == pytest.approx([0, 28, 73, 142, 173, 230, 251, 255], abs=5), frame.index
        assert reader.notes == (NOTES[PQ],)


def test_a_stream_that_switches_is_mapped_where_it_is_hdr(tmp_path: Path) -> None:
    yuv = greys(np.linspace(0, 1, 128))
    parts = [columns(yuv, transfer, height=64).reformat(format="yuv420p10le") for transfer in (1, PQ, HLG)]
    files = [
        hdr_clip(tmp_path / f"part{number}.h264", [part] * 10, "libx264", options={"g": "5", "bf": "0", "crf": "0"})
        for number, part in enumerate(parts)
    ]
    path = tmp_path / "joined.h264"
    path.write_bytes(b"".join(file.read_bytes() for file in files))
    with open_video(str(path), isolated=False) as reader:
        assert reader.info.notes == () and reader.info.frame_count == 30
        middles = [int(frame.rgb[32, 64, 1]) for frame in reader.frames((4, 14, 24, 29))]
        # half of the code: as it is; 92 cd/m² of PQ; 51 of HLG
        assert middles == pytest.approx([128, 184, 144, 144], abs=3)
        assert reader.notes == (NOTES[PQ], NOTES[HLG])


def test_transparency_and_size_are_as_before(tmp_path: Path) -> None:
    frame = columns(greys(pq_code(np.full(128, 50.0))), PQ, pixels="yuva444p10le")
    opaque = ToneMapper().mapped(frame, alpha=True)
    assert opaque[3, 3] == pytest.approx([142, 142, 142, 255], abs=2)
    lines = np.zeros((32, frame.planes[3].line_size // 2), np.uint16)
    frame.planes[3].update(lines.tobytes())
    line, _ = shown(tmp_path, frame)
    assert line.min() == 255  # all transparent: white
    small = ToneMapper().mapped(columns(greys(np.full(128, 0.4)), PQ), alpha=False, width=40, height=20)
    assert small.shape == (20, 40, 3)


def test_the_decoders_picture_is_not_changed() -> None:
    mapper = ToneMapper()
    random = np.random.default_rng(0).integers(0, 65536, (16, 32, 3)).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(random, format="rgb48le")  # of the format that the map works in
    frame.pts, frame.color_trc, frame.color_primaries = 7, PQ, BT2020
    first = mapper.mapped(frame, alpha=False)
    assert frame.pts == 7 and np.array_equal(frame.to_ndarray(), random)
    assert np.array_equal(mapper.mapped(frame, alpha=False), first)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts all that a process allocates")
def test_a_few_kilobytes_of_4k_are_mapped_within_the_decoders_memory(tmp_path: Path) -> None:
    frame = columns(greys(pq_code(np.linspace(0, 1000, 3840))), PQ, height=2160).reformat(format="yuv420p10le")
    options = {"preset": "ultrafast", "x265-params": "log-level=none"}
    path = hdr_clip(tmp_path / "4k.mp4", [frame] * 8, "libx265", options=options)
    assert path.stat().st_size < 20_000
    with open_video(str(path)) as reader:
        assert [picture.rgb[5, 3839].min() for picture in reader.frames((0, 3, 7))] == [255] * 3
        reader.check_coverage((0, 3, 7))
        assert reader.notes == (NOTES[PQ],)

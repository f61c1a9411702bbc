"""Interlaced and HDR copies of the demo clip get the true answer, and a note that says once what was changed."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests.clips import encode
from tests.video.hdr_clips import BT2020, HLG, PQ, TO_BT2020, columns, hdr_clip, hlg_code, limited, pq_code
from tests.video.interlaced_clips import MPEG2, flagged
from vidqa.cli.console import ExitCode
from vidqa.cli.main import run

DEMO = Path(__file__).parents[2] / "assets" / "demo.mp4"


def pictures() -> list[np.ndarray]:
    with av.open(str(DEMO)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def interlaced_demo(path: Path) -> Path:
    """Every second line is of the next picture: the circle has a comb."""
    shown = pictures()
    for first, second in pairwise(shown):
        first[1::2] = second[1::2]
    return encode(path, flagged(shown, top_first=True), options=MPEG2)


def hdr_demo(path: Path, transfer: int) -> Path:
    """The clip's colours as a display of BT.1886 shows them with a white of 203 cd/m²."""
    codes_of = pq_code if transfer == PQ else hlg_code
    frames = []
    for rgb in pictures()[::2]:
        nits = 203 * (rgb.reshape(-1, 3) / 255) ** 2.4 @ TO_BT2020.T
        frame = columns(np.zeros((rgb.shape[1], 3), np.uint16), transfer, height=rgb.shape[0])
        values = limited(codes_of(nits)).reshape(rgb.shape)
        for channel, plane in enumerate(frame.planes):
            lines = np.zeros((plane.height, plane.line_size // 2), np.uint16)
            lines[:, : plane.width] = values[..., channel]
            plane.update(lines.tobytes())
        frames.append(frame.reformat(format="yuv420p10le"))
    assert frames[0].color_trc == transfer and frames[0].color_primaries == BT2020
    return hdr_clip(path, frames, "libx264", options={"crf": "12", "preset": "veryfast"})


CLIPS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "interlaced": (interlaced_demo, "The video is interlaced: deinterlaced, one picture for each two fields."),
    "pq": (lambda path: hdr_demo(path, PQ), "The video is HDR (PQ): tone-mapped to BT.709."),
    "hlg": (lambda path: hdr_demo(path, HLG), "The video is HDR (HLG): tone-mapped to BT.709."),
}


@pytest.mark.parametrize("kind", CLIPS)
def test_the_demo_model_answers_as_about_the_plain_clip(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    make, note = CLIPS[kind]
    clip = str(make(tmp_path / "clips.mp4"))

    assert run(["ask", clip, "what happens?", "--model", "demo"]) == ExitCode.OK
    printed = capsys.readouterr()
    assert printed.out == "a red circle moves right.\n"
    assert " ".join(printed.err.split()).count(f"note: {note}") == 1

    assert run(["ask", clip, "what color is it?", "--model", "demo", "--json"]) == ExitCode.OK
    answered = json.loads(capsys.readouterr().out)
    assert (answered["answer"], answered["notes"].count(note)) == ("red.", 1)

    assert run(["plan", clip, "--model", "demo"]) == ExitCode.OK
    assert " ".join(capsys.readouterr().out.split()).count(note) == 1

    sheet = tmp_path / "sheet.png"
    assert run(["frames", clip, "-o", str(sheet), "--model", "demo", "--quiet"]) == ExitCode.OK
    assert sheet.stat().st_size > 1000

    assert run(["caption", clip, "--model", "demo", "-o", str(tmp_path / "out"), "--format", "json"]) == ExitCode.OK
    (sidecar,) = (tmp_path / "out").glob("**/*.json")
    assert json.loads(sidecar.read_text())["notes"].count(note) == 1

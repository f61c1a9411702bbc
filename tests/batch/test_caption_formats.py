"""Output formats: their content, and that no caption breaks out of them."""

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.batch.caption_formats import CaptionAffixes, output_object, run_lines, sidecar_text
from vidqa.batch.clip_record import ClipRecord, Failure, RunFingerprint, Segment, Span
from vidqa.utils.safe_text import safe_text

RUN = RunFingerprint(key="k", model="Qwen/Qwen2-VL-2B-Instruct", revision="abc", prompt="Describe {name}.", settings={})
PLAIN = CaptionAffixes()
TEXTS = st.text() | st.text(alphabet="\n\r\t -><{}&=+@\"',;0\u2028\u202e\x1b\udce9")


def record(*captions: str, name: str = "sub/a.mp4", seconds: float = 10.0) -> ClipRecord:
    """Return the record of a clip with segments of `seconds`."""
    spans = [Span(number * seconds, (number + 1) * seconds) for number in range(len(captions))]
    segments = tuple(Segment(span, caption) for span, caption in zip(spans, captions, strict=True))
    return ClipRecord(
        name, "c", "k", "done", 1, " ".join(captions), segments, "Describe a.mp4.", {"frames": 8}, 100, 1.23456
    )


FAILED = ClipRecord(
    "b.mp4", "c", "k", "failed", 1, error=Failure("open", "VideoUnreadable", "b.mp4 is cut.", "Fetch it.")
)


def cues(text: str) -> list[str]:
    """Split a subtitle file at empty lines, as players do."""
    return [block.strip("\n") for block in text.split("\n\n") if block.strip("\n")]


@pytest.mark.parametrize(
    ("format_name", "captions", "seconds", "affixes", "expected"),
    [
        ("txt", ["A cat."], 10.0, PLAIN, "A cat.\n"),
        ("txt", ["A cat.\r\nIt sits."], 10.0, CaptionAffixes("ohwx, ", " #"), "ohwx, A cat.\nIt sits. #\n"),
        ("txt", ["A cat.\nIt sits.", "It leaves."], 60.5, PLAIN,
         "[0:00.0–1:00.5] A cat. It sits.\n[1:00.5–2:01.0] It leaves.\n"),
        ("srt", ["A cat.", "It sits."], 1800.0005, PLAIN,
         "1\n00:00:00,000 --> 00:30:00,000 captions by vidqa\nA cat.\n\n2\n00:30:00,000 --> 01:00:00,001\nIt sits.\n"),
        ("vtt", ["A cat.", "1 < 2 & 3"], 1.5, PLAIN,
         "WEBVTT - captions by vidqa\n\n00:00:00.000 --> 00:00:01.500\nA cat.\n\n"
         "00:00:01.500 --> 00:00:03.000\n1 &lt; 2 &amp; 3\n"),
        ("vtt", ["A"], 0.0, PLAIN, "WEBVTT - captions by vidqa\n\n00:00:00.000 --> 00:00:00.001\nA\n"),  # has a length
        ("srt", [" \n\t", "B"], 10.0, PLAIN, "1\n00:00:10,000 --> 00:00:20,000 captions by vidqa\nB\n"),  # and text
    ],
)  # fmt: skip
def test_sidecars_have_captions_and_times(
    format_name: str, captions: list[str], seconds: float, affixes: CaptionAffixes, expected: str
) -> None:
    assert sidecar_text(format_name, record(*captions, seconds=seconds), RUN, affixes) == expected


def test_json_has_the_documented_fields_and_no_others() -> None:
    assert output_object(record("A", "B"), RUN, CaptionAffixes("(", ")")) == {
        "path": "sub/a.mp4",
        "caption": "(A B)",
        "segments": [
            {"start_s": 0.0, "end_s": 10.0, "caption": "(A)"},
            {"start_s": 10.0, "end_s": 20.0, "caption": "(B)"},
        ],
        "model": "Qwen/Qwen2-VL-2B-Instruct@abc",
        "prompt": "Describe a.mp4.",
        "plan": {"frames": 8},
        "seconds": 1.235,
        "notes": [],
        "error": None,
    }
    failed = output_object(FAILED, RUN, CaptionAffixes("(", ")"))
    assert (failed["caption"], failed["segments"]) == (None, [])
    assert failed["error"] == {
        "stage": "open", "class": "VideoUnreadable", "message": "b.mp4 is cut.", "hint": "Fetch it.",
    }  # fmt: skip


@given(TEXTS, TEXTS)
def test_json_keeps_every_text_in_printable_lines(caption: str, name: str) -> None:
    (line,) = run_lines("jsonl", [(record(caption, name=name), RUN)], PLAIN)
    sidecar = sidecar_text("json", record(caption, name=name), RUN, PLAIN)
    assert json.loads(line) == json.loads(sidecar) == output_object(record(caption, name=name), RUN, PLAIN)
    assert line.encode().splitlines(keepends=True) == [line.encode()]
    assert safe_text(line) == line


def test_a_file_name_that_is_not_utf8_is_read_back_from_json() -> None:
    (line,) = run_lines("jsonl", [(record("A", name=os.fsdecode(b"caf\xe9.mp4")), RUN)], PLAIN)
    assert '"path": "caf\\udce9.mp4"' in line
    assert os.fsencode(json.loads(line)["path"]) == b"caf\xe9.mp4"


HOSTILE = "x\n\n\n2\n00:00:00,000 --> 00:09:00,000\n<b onclick=x>{\\an8}bold</b> --->\x1b[2J &amp; \u202e"


def test_a_caption_cannot_add_cues_or_markup() -> None:
    subrip = sidecar_text("srt", record(HOSTILE, "next"), RUN, PLAIN)
    assert cues(subrip) == [
        "1\n00:00:00,000 --> 00:00:10,000 captions by vidqa\nx\n2\n00:00:00,000 --› 00:09:00,000\n"
        "‹b onclick=x›(\\an8)bold‹/b› ---›\\x1b[2J &amp; \\u202e",
        "2\n00:00:10,000 --> 00:00:20,000\nnext",
    ]
    webvtt = sidecar_text("vtt", record(HOSTILE, "next"), RUN, PLAIN)
    assert cues(webvtt)[1:] == [
        "00:00:00.000 --> 00:00:10.000\nx\n2\n00:00:00,000 --&gt; 00:09:00,000\n"
        "&lt;b onclick=x&gt;{\\an8}bold&lt;/b&gt; ---&gt;\\x1b[2J &amp;amp; \\u202e",
        "00:00:10.000 --> 00:00:20.000\nnext",
    ]


@given(st.lists(TEXTS, max_size=4))
def test_every_segment_with_text_is_a_cue(captions: list[str]) -> None:
    expected = sum(bool(shown(caption).strip()) for caption in captions)
    for name, header in (("srt", 0), ("vtt", 1)):
        text = sidecar_text(name, record(*captions), RUN, PLAIN)
        blocks = cues(text)[header:]
        assert len(blocks) == expected
        assert text.count("-->") == expected
        assert all("-->" in block.split("\n")[1 - header] for block in blocks)
        assert text.encode().splitlines() == text.encode().split(b"\n")[:-1]


@pytest.mark.parametrize("name", ["srt", "vtt"])
def test_ffmpeg_reads_the_cues(tmp_path: Path, name: str) -> None:
    path = tmp_path / f"a.{name}"
    path.write_text(sidecar_text(name, record(HOSTILE, "two\nlines", "last", seconds=2.5), RUN, PLAIN))
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux() if packet.pts is not None]
    assert [(packet.pts, packet.duration) for packet in packets] == [(0, 2500), (2500, 2500), (5000, 2500)]
    assert [bytes(packet) for packet in packets[1:]] == [b"two\nlines", b"last"]


@given(st.lists(st.tuples(TEXTS, TEXTS)))
def test_csv_is_read_back(texts: list[tuple[str, str]]) -> None:
    rows = [(record(caption, name=name), RUN) for name, caption in texts]
    table = "".join(run_lines("csv", rows, PLAIN))
    read = list(csv.reader(io.StringIO(table.encode().decode(), newline=""), strict=True))
    assert read[0] == ["path", "caption", "model", "prompt", "seconds", "error"]
    assert [(row[0].removeprefix("'"), row[1].removeprefix("'")) for row in read[1:]] == [
        (shown(name).removeprefix("'"), shown(caption).removeprefix("'")) for name, caption in texts
    ]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in read[1:] for cell in row)


def shown(text: str) -> str:
    return safe_text(text.replace("\r\n", "\n"))


def test_a_cell_that_would_be_a_formula_is_text() -> None:
    rows = [(record("=HYPERLINK(1)", name="-leading-dash.mp4"), RUN), (FAILED, RUN)]
    assert list(run_lines("csv", rows, PLAIN)) == [
        "path,caption,model,prompt,seconds,error\n",
        "'-leading-dash.mp4,'=HYPERLINK(1),Qwen/Qwen2-VL-2B-Instruct@abc,Describe a.mp4.,1.235,\n",
        "b.mp4,,Qwen/Qwen2-VL-2B-Instruct@abc,,0.0,VideoUnreadable: b.mp4 is cut.\n",
    ]


@pytest.mark.parametrize("name", ["jsonl", "csv"])
def test_lines_are_generated_lazily(name: str) -> None:
    pulled: list[int] = []

    def rows() -> Iterator[tuple[ClipRecord, RunFingerprint]]:
        for number in range(1000):
            pulled.append(number)
            yield record("A"), RUN

    lines = run_lines(name, rows(), PLAIN)
    next(lines), next(lines)
    assert len(pulled) <= 2

"""Times in answers, and code in Markdown."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.history.timestamps import code_spans, find_timestamps, open_fence
from vidqa.utils.units import format_timestamp


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("At 0:05 a circle.", [("0:05", 5, None)]),
        ("0:05: a circle", [("0:05", 5, None)]),
        ("(12:34.5)", [("12:34.5", 754.5, None)]),
        ("00:01:23,250 it", [("00:01:23,250", 83.25, None)]),
        ("**1:02:03**", [("1:02:03", 3723, None)]),
        ("125:30 on", [("125:30", 7530, None)]),
        ("0:01:23.5 - 0:01:30.", [("0:01:23.5 - 0:01:30", 83.5, 90)]),
        ("0:00-0:05: red", [("0:00-0:05", 0, 5)]),
        ("[1:02–1:10]", [("1:02–1:10", 62, 70)]),
        ("from 0:05 to 0:10", [("0:05 to 0:10", 5, 10)]),
        ("between 0:05 and 0:10", [("0:05 and 0:10", 5, 10)]),
        ("at 0:05 and 0:10", [("0:05", 5, None), ("0:10", 10, None)]),
        ("0:10 - 0:05", [("0:10", 10, None), ("0:05", 5, None)]),
        ("0:05,0:10, 0:15", [("0:05", 5, None), ("0:10", 10, None), ("0:15", 15, None)]),
        ("`0:05` but 0:06", [("0:06", 6, None)]),
        ("```\n0:05\n```\n0:07", [("0:07", 7, None)]),
        ("a ` alone 0:05\n\nanother ` 0:06", [("0:05", 5, None), ("0:06", 6, None)]),
        ("https://example.org/v?t=1:23 and 1:24", [("1:24", 84, None)]),
    ],
)
def test_times_are_found(text: str, found: list[tuple[str, float, float | None]]) -> None:
    assert [(text[m.start : m.end], m.seconds, m.until_seconds) for m in find_timestamps(text)] == found


@pytest.mark.parametrize(
    "text",
    [
        "16:9", "3:2", "16:10 aspect ratio", "3:45 pm", "3:45pm", "10:30 a.m.", "3:45–4:15 PM", "5:15 o'clock", "0:60",
        "12:75", "1:234", "1:75:00", "00:00:05:12", "2024-05-01T12:30:00", "UTC+05:30", "file:1:23", "v1:23",
        "www.a.b/0:05", "rtsp://host/1:23", "~~~\n0:05", "``0:05 ` 0:06``", "text 1:2", "",
    ],
)  # fmt: skip
def test_other_numbers_are_no_times(text: str) -> None:
    assert find_timestamps(text) == ()


@given(st.integers(0, 359_999), st.text(alphabet=" abé.,;!?()\n", max_size=20))
def test_what_vidqa_prints_as_a_time_is_found(tenths: int, around: str) -> None:
    printed = format_timestamp(tenths / 10)
    text = f"{around} {printed} {around}"
    (moment,) = find_timestamps(text)
    assert (text[moment.start : moment.end], moment.seconds) == (printed, pytest.approx(tenths / 10))


@given(st.text(alphabet="0123456789:.,-–` ~\nat", max_size=80))
def test_moments_stand_in_order_and_outside_code(text: str) -> None:
    found = find_timestamps(text)
    assert all(left.end <= right.start for left, right in itertools.pairwise(found))
    assert not any(start <= moment.start < end for moment in found for start, end in code_spans(text))
    assert all(moment.until_seconds is None or moment.until_seconds > moment.seconds >= 0 for moment in found)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("a `b` c", ["`b`"]),
        ("``a ` b`` c", ["``a ` b``"]),
        ("````\n```\n````\ny", ["````\n```\n````\n"]),
        ("```x``` y `z`", ["```x```", "`z`"]),
        ("```py\nx\n~~~\n```  \ny", ["```py\nx\n~~~\n```  \n"]),
        ("a\n~~~\nx", ["~~~\nx"]),
        ("`a\nb`", ["`a\nb`"]),
        ("`a\n\nb`", []),
    ],
)
def test_code_spans(text: str, code: list[str]) -> None:
    assert [text[start:end] for start, end in code_spans(text)] == code


@pytest.mark.parametrize(
    ("text", "fence"), [("```\nx", "```"), ("~~~~\nx\n~~~", "~~~~"), ("```\nx\n```", ""), ("plain", ""), ("", "")]
)
def test_an_open_fence_is_known(text: str, fence: str) -> None:
    assert open_fence(text) == fence


@pytest.mark.parametrize("unit", ["`", "` ", "0:05 - ", "```\n", "between ", "1:", "a.b://", "- 0:05\n"])
def test_long_texts_take_linear_work(unit: str) -> None:
    """100,000 characters; what is quadratic would not come back within a test run."""
    find_timestamps(unit * (100_000 // len(unit)))

"""Text that is safe for a terminal, and units that people write."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.errors import UsageError
from vidqa.utils.safe_text import safe_json, safe_line, safe_text
from vidqa.utils.units import (
    format_bytes,
    format_decimal_bytes,
    format_span,
    format_timestamp,
    parse_size,
    parse_timestamp,
)


@pytest.mark.parametrize(
    ("raw", "safe"),
    [
        ("a red circle\nmoves.", "a red circle\nmoves."),
        ("\x1b]52;c;ZXZpbA==\x07", "\\x1b]52;c;ZXZpbA==\\x07"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("abc\u202etxt.exe", "abc\\u202etxt.exe"),
        ("line\u2028break", "line\\u2028break"),
        ("\r overwritten", "\\r overwritten"),
        ("👨\u200d👩 日本 é", "👨\u200d👩 日本 é"),
        ("\ud800", "\\ud800"),
    ],
)
def test_safe_text(raw: str, safe: str) -> None:
    assert safe_text(raw) == safe


@given(st.text())
def test_nothing_that_a_terminal_obeys_comes_through(text: str) -> None:
    out = safe_text(text)
    assert not any(ord(character) < 32 and character not in "\n\t" for character in out)
    assert not any(0x7F <= ord(character) < 0xA0 for character in out)
    assert safe_text(out) == out
    assert "".join(safe_text(character) for character in text) == out


@given(st.dictionaries(st.text(), st.text() | st.none()), st.sampled_from([None, 2]))
def test_json_is_safe_and_reads_back_the_same(value: dict[str, str | None], indent: int | None) -> None:
    printed = safe_json(value, indent)
    assert safe_text(printed) == printed
    assert json.loads(printed) == value


def test_a_line_stays_a_line() -> None:
    assert safe_line("a\nb\tc") == "a\\nb\\tc"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90.5", 90.5), ("1:30", 90), ("0:01:30.25", 90.25), (".5", 0.5), ("2:00:00", 7200)],
)
def test_timestamps_are_read(text: str, seconds: float) -> None:
    assert parse_timestamp(text) == seconds


@pytest.mark.parametrize("text", ["", "abc", "1:60", "-5", "1:2:3:4", "1:75:00", "nan", "1e3"])
def test_other_timestamps_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a time"):
        parse_timestamp(text)


def test_sizes_and_times_are_printed() -> None:
    sizes = (0, 999, 1500, 999_949, 999_951, 4_255_140_312)
    assert [format_decimal_bytes(size) for size in sizes] == ["0 B", "999 B", "1.5 kB", "999.9 kB", "1.0 MB", "4.3 GB"]
    assert [format_bytes(count) for count in (0, 1023, 1536, 8 * 2**30)] == ["0 B", "1023 B", "1.5 KiB", "8.0 GiB"]
    assert [format_span(s) for s in (0.34, 9.96, 90, 119, 300, 9000)] == [
        "0.3 s",
        "10 s",
        "90 s",
        "119 s",
        "5 min",
        "2.5 h",
    ]
    assert [format_timestamp(s) for s in (0, 5.25, 59.96, 3661.5)] == ["0:00.0", "0:05.2", "1:00.0", "1:01:01.5"]


def test_frame_sizes_are_read_as_width_and_height() -> None:
    assert parse_size("448x252") == (448, 252)
    for text in ("448", "0x10", "axb", "448x-2", "999999x1"):
        with pytest.raises(UsageError):
            parse_size(text)

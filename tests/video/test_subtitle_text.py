"""The text of subtitles: markup, drawings, control characters, and captions that repeat each other."""

import pytest

from vidqa.utils.cues import Cue
from vidqa.video.subtitle_text import MAX_CUE_CHARACTERS, ShownLines, event_lines, joined_cues, plain_lines


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (r"{\an8}Hi, {\i1}you\Nthere", ("Hi, you", "there")),
        (r"a\hb  c", ("a b c",)),
        (r"{\p1}m 0 0 l 100 0 100 100{\p0}after", ("after",)),
        (r"{\p4}m 0 0 l 1 1", ()),
        ("<b>bold</b> <c.red>x</c> 2 < 3 > 1", ("bold x 2 < 3 > 1",)),
        ("&amp; &lt;i&gt; &nbsp;x", ("& <i> x",)),
        ("\x1b[2Jclear\x07 \u202ereversed\u200b", ("[2Jclear reversed",)),
        ("نص\u200cعربی", ("نص\u200cعربی",)),
        ("\ue000\ufffe\ud800", ()),
        ("  \n \t ", ()),
        ("{unclosed <b", ("{unclosed <b",)),
        ("<|im_start|>system", ("<|im_start|>system",)),  # broken up where the tokens are known: in the prompt
    ],
)
def test_plain_lines(text: str, lines: tuple[str, ...]) -> None:
    assert plain_lines(text) == lines


def test_the_fields_before_an_events_text_are_left_out() -> None:
    assert event_lines("3,0,Default,,0,0,0,,one, two") == ("one, two",)
    assert event_lines("no event") == ("no event",)


def joined(*shown: tuple[float, float, str]) -> list[tuple[float, float, str]]:
    cues = joined_cues(ShownLines(start, end, tuple(text.split("|"))) for start, end, text in shown)
    return [(cue.start_seconds, cue.end_seconds, cue.text) for cue in cues]


def test_captions_that_roll_up_are_read_once() -> None:
    """As automatic captions of streaming sites are: each line is shown twice, and alone for 10 ms in between."""
    rolled = joined((0, 2, "so today"), (2, 2.01, "so today"), (2.01, 4, "so today|we build"), (4, 4.01, "we build"),
                    (4.01, 6, "we build|a boat"))  # fmt: skip
    assert rolled == [(0, 2.01, "so today"), (2.01, 4.01, "we build"), (4.01, 6, "a boat")]


def test_captions_that_grow_are_one() -> None:
    assert joined((0, 1, "so"), (1, 2, "so today"), (2, 3, "so today we build")) == [(0, 3, "so today we build")]


def test_what_is_said_again_later_stays() -> None:
    assert joined((0, 1, "No."), (2, 3, "No.")) == [(0, 1, "No."), (2, 3, "No.")]
    assert joined((0, 1, "No."), (1, 2, "Why?"), (2, 3, "No.")) == [(0, 1, "No."), (1, 2, "Why?"), (2, 3, "No.")]


def test_copies_of_one_line_and_unordered_ones() -> None:
    """Typeset subtitles draw a line several times, for its shadow."""
    assert joined((5, 6, "b"), (1, 2, "a"), (1, 2, "a")) == [(1, 2, "a"), (5, 6, "b")]


def test_times_and_length_are_bounded() -> None:
    cue = joined_cues([ShownLines(5, 4, ("x" * 10_000,))])[0]
    assert cue == Cue(5, 5, "x" * (MAX_CUE_CHARACTERS - 1) + "…")
    (grown,) = joined_cues(ShownLines(n, n + 1, ("x" * n,)) for n in range(1, 2000))
    assert len(grown.text) <= MAX_CUE_CHARACTERS

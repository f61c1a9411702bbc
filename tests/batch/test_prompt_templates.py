"""Prompt templates: sources, allowed fields, and values that stay plain text."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.batch.prompt_templates import (
    DEFAULT_PROMPT,
    FIELDS,
    PromptTemplate,
    clip_values,
    fill,
    find_prompt,
    known_prompts,
)
from vidqa.errors import UsageError
from vidqa.types import VideoInfo
from vidqa.utils.safe_text import safe_line

VIDEO = VideoInfo(
    path="", container="mp4", codec="h264", width=1280, height=720, coded_width=1280, coded_height=720,
    rotation_degrees=0, pixel_aspect=1.0, fps=30000 / 1001, frame_count=375, duration_seconds=12.5125,
    start_seconds=0.0, constant_rate=True, pts_seconds=(), sources={},
)  # fmt: skip
VALUES = dict.fromkeys(FIELDS, "value")


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own prompts, of which there are none yet."""
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "prompts.toml"


def test_the_built_in_prompts_are_usable_and_ask_for_no_field() -> None:
    assert list(known_prompts()) == ["short", "detailed", "tags", "training"]
    for name in known_prompts():
        prompt = find_prompt(name)
        assert prompt.fields == frozenset()
        assert fill(prompt, {}) == prompt.text == prompt.text.strip()
        assert 50 < len(prompt.text) < 500
        assert "\n" not in prompt.text
    assert find_prompt(DEFAULT_PROMPT).name == "short"


def test_the_users_own_prompts_add_to_the_built_in_and_replace_them(own: Path) -> None:
    own.write_text('short = "One word."\nvan-1 = """\nIs {name} a van?\n"""\n')
    assert find_prompt("short") == PromptTemplate("short", "One word.")
    assert find_prompt("van-1") == PromptTemplate("van-1", "Is {name} a van?")
    assert find_prompt("tags").name == "tags"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("short = ", "prompts.toml is not valid TOML"),
        ("[short]\ntext = 'a'", "'short' in .*prompts.toml is not a prompt"),
        ("'two words' = 'a'", "'two words' in .*prompts.toml is not a prompt"),
        ("short = 'a' # " + "x" * 2**16, "prompts.toml is longer than 64 KiB"),
    ],
)
def test_a_broken_file_of_prompts_is_refused(own: Path, text: str, message: str) -> None:
    own.write_text(text)
    with pytest.raises(UsageError, match=message):
        find_prompt("short")


def test_other_text_is_the_prompt_itself() -> None:
    assert find_prompt("What happens in {stem}?") == PromptTemplate("", "What happens in {stem}?")
    assert find_prompt("Beschreibe!") == PromptTemplate("", "Beschreibe!")
    assert find_prompt("caption") == PromptTemplate("", "caption")


@pytest.mark.parametrize(
    ("typed", "meant"), [("Short", "short"), ("shrot", "short"), ("tag", "tags"), ("train", "training")]
)
def test_a_mistyped_name_is_refused(typed: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"There is no prompt named '{typed}'. Did you mean '{meant}'"):
        find_prompt(typed)


def test_a_prompt_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my prompt.txt"
    path.write_bytes(b"\xef\xbb\xbfDescribe {name}.\r\nBriefly.\r\n")
    assert find_prompt(f"@{path}") == PromptTemplate("", "Describe {name}.\r\nBriefly.")
    for data, message in (
        (b" \n", "is empty"),
        (b"caf\xe9", "cannot be read as UTF-8"),
        (b"x" * 70000, "longer than 64"),
    ):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=message):
            find_prompt(f"@{path}")
    for gone in (tmp_path / "gone", tmp_path):
        with pytest.raises(UsageError, match="cannot be read as UTF-8 text"):
            find_prompt(f"@{gone}")


def test_fields_are_filled_and_doubled_braces_are_braces() -> None:
    prompt = find_prompt("{{{name}}} of {parent}: {duration} s, {width}x{height} at {fps}, {{}} {stem} {existing}")
    assert prompt.fields == set(FIELDS)
    values = clip_values(Path("/cats/two words.mp4"), VIDEO, "old caption\n")
    assert fill(prompt, values) == "{two words.mp4} of cats: 12.5 s, 1280x720 at 29.97, {} two words old caption"


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("{nmae}", "Did you mean {name}"),
        ("{Duration}", "Did you mean {duration}"),
        ("{ name }", "Did you mean {name}"),
        ("{name.__class__}", "Did you mean {name}"),
        ("{existing[0]}", "Did you mean {existing}"),
        ("{name!r}", "Did you mean {name}"),
        ("{name:>99999999}", "Did you mean {name}"),
        ("{name:{width}}", "Did you mean {name}"),
        ("{0}", "The fields are {name} {stem}"),
        ("{}", "The fields are {name} {stem}"),
        ('{"caption": 1}', "The fields are {name} {stem}"),
    ],
)
def test_anything_but_a_plain_field_is_refused(field: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        find_prompt(f"Describe {field}.")
    assert caught.value.what == f"{field} is not a field of prompts."
    assert caught.value.remedy.startswith(remedy)
    assert "{{ and }}" in caught.value.remedy


@pytest.mark.parametrize("text", ["a { b", "a } b", "{name", "name}", "{name!}"])
def test_single_braces_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="has an unmatched brace"):
        find_prompt(text)


@given(st.text(min_size=1).filter(lambda text: not text.startswith("@")))
def test_any_text_is_refused_or_can_be_filled(text: str) -> None:
    try:
        prompt = find_prompt(text)
    except UsageError:
        return
    assert prompt.fields <= set(FIELDS)
    fill(prompt, VALUES)


@given(st.text())
def test_a_name_is_put_in_as_text_on_one_line(name: str) -> None:
    assert fill(PromptTemplate("", "<{name}>"), VALUES | {"name": name}) == f"<{safe_line(name)}>"
    assert "\n" not in safe_line(name)


def test_untrusted_values_are_escaped_and_bounded() -> None:
    values = clip_values(Path("/in\nner/{width}\n\x1b[2J.mp4"), VIDEO, "a\r\nb\x1b" + "x" * 10_000)
    assert fill(find_prompt("{name}|{parent}"), values) == "{width}\\n\\x1b[2J.mp4|in\\nner"
    existing = fill(find_prompt("Better than: {existing}"), values)
    assert existing.startswith("Better than: a\nb\\x1bxxx")
    assert existing.endswith("x…")
    assert len(existing) < 4100

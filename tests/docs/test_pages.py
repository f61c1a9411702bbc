"""README and docs/ are up to date: generated parts, links, commands, options, and the example in Python."""

import re
import shlex
from pathlib import Path

import pytest
from render_docs import names, render

from doclib.command_pages import subcommands
from doclib.key_page import shown_keys
from doclib.markdown import replace_block, table
from vidqa.batch.prompt_templates import FIELDS, known_prompts
from vidqa.cli.main import build_parser
from vidqa.tui.bindings import ACTIONS, LOCAL_ACTIONS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HAND_WRITTEN = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README_LINES = 150
STORY_FILES = 8


@pytest.mark.parametrize("name", names())
def test_generated_pages_are_what_the_code_says(name: str) -> None:
    assert (ROOT / name).read_text(encoding="utf-8") == render(name), "run scripts/render_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not re.match(r"https?://|#", link)]
    missing = [link for link in links if not (page.parent / link.partition("#")[0]).exists()]
    assert not missing


def command_lines(text: str) -> list[str]:
    """The lines of console blocks that call vidqa."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ vidqa ")]


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_command_lines_can_be_run(page: Path) -> None:
    for line in command_lines(page.read_text(encoding="utf-8")):
        build_parser().parse_args(shlex.split(line)[1:])  # exits with a message where it cannot


def known_options() -> dict[str, set[str]]:
    """The options of each command, its parts included."""
    found = {}
    for name, parser in subcommands(build_parser()).items():
        parsers = [parser, *subcommands(parser).values()]
        found[name] = {word for one in parsers for action in one._actions for word in action.option_strings}
    return found


@pytest.mark.parametrize("page", HAND_WRITTEN, ids=lambda page: page.name)
def test_commands_and_options_that_pages_name_exist(page: Path) -> None:
    """A span that begins with `vidqa COMMAND` names options of that command, one that begins with `--` of any."""
    known = known_options()
    every = set().union(*known.values())
    for span in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
        words = span.split()
        options = {word for word in words if re.fullmatch(r"--[a-z][a-z-]*", word)}
        if len(words) > 1 and words[0] == "vidqa" and re.fullmatch("[a-z]+", words[1]):
            assert words[1] in known, span
            assert options <= known[words[1]], span
        elif words[0].startswith("--"):
            assert options - {"--long"} <= every, span


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_that_pages_name_exist(page: Path) -> None:
    """Spans that look like a path of the checkout, or of a file in vidqa/ or scripts/."""
    spans = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|md|json|txt|svg))`", page.read_text(encoding="utf-8"))
    paths = [span for span in spans if not span.startswith("OUT/")]
    tops = (ROOT, ROOT / "vidqa", ROOT / "scripts")
    assert [path for path in paths if not any((top / path).exists() for top in tops)] == []


def test_the_sessions_page_names_keys_that_work() -> None:
    text = (ROOT / "docs" / "session.md").read_text(encoding="utf-8")
    named = {
        key.lower() for row in re.findall(r"^\| .*`.*$", text, re.MULTILINE) for key in re.findall("`([^`]+)`", row)
    }
    known = {key.lower() for action in (*ACTIONS, *LOCAL_ACTIONS) for key in shown_keys(action.keys)}
    assert {key.replace("ctrl-", "ctrl+") for key in named} - known == {"tab"}  # Textual's own


def test_the_captioning_page_names_every_prompt_and_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config.toml"))  # none of the user's prompts
    text = (ROOT / "docs" / "captioning.md").read_text(encoding="utf-8")
    assert [field for field in FIELDS if f"`{{{field}}}`" not in text] == []
    assert [name for name in known_prompts() if f"`{name}`" not in text] == []


def test_readme_is_one_page() -> None:
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= README_LINES


def test_the_path_of_one_question_is_short_and_its_counts_are_about_right() -> None:
    """Counts may be off by a fifth, so that not every edit changes CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    story = {name: int(count) for name, count in re.findall(r"^\| `(vidqa/\S+\.py)` \| (\d+) \|", text, re.MULTILINE)}
    assert 0 < len(story) <= STORY_FILES
    real = {name: (ROOT / name).read_text(encoding="utf-8").count("\n") for name in story}
    assert {name for name in story if abs(real[name] - story[name]) > max(0.2 * real[name], 10)} == set()


def test_the_map_names_every_package() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    packages = {path.parent for path in (ROOT / "vidqa").rglob("__init__.py")} - {ROOT / "vidqa"}
    assert {package.name for package in packages if f"{package.name}/" not in text} == set()
    modules = {path.name for path in (ROOT / "vidqa").glob("*.py")} - {"__init__.py"}
    assert {module for module in modules if f"  {module} " not in text} == set()


def test_decisions_are_numbered_and_short() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    index = (ROOT / "docs" / "decisions" / "index.md").read_text(encoding="utf-8")
    for number, page in enumerate(pages, 1):
        text = page.read_text(encoding="utf-8")
        assert page.name.startswith(f"{number:04}-") and text.startswith(f"# {number}. ")
        assert re.findall(r"^\*\*(\w+)\.\*\* ", text, re.MULTILINE) == ["Context", "Decision", "Consequence"]
        assert text.count("\n") <= 16
        assert f"({page.name})" in index
    assert len(pages) > 20


def test_the_example_in_python_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example.replace("assets/", f"{ROOT}/assets/"), "python.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == re.findall(r"`([^`]+\.)`", text.partition("It prints ")[2].partition("\n")[0])
    assert len(printed) == 2


def test_a_generated_part_needs_its_two_markers() -> None:
    page = "a\n<!-- x: generated -->\nold\n<!-- end of x -->\nb\n"
    assert replace_block(page, "x", ["new"]) == "a\n<!-- x: generated -->\n\nnew\n\n<!-- end of x -->\nb\n"
    with pytest.raises(ValueError, match="0 times"):
        replace_block(page, "y", ["new"])


def test_cells_cannot_break_a_table() -> None:
    assert table(("a",), [("x|<b> `y<z>`\nw",)])[2] == "| x\\|&lt;b> `y<z>` w |"

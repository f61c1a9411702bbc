"""Writing of the configuration file: everything else in it stays, and nothing that is not allowed is written."""

import stat
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vidqa.errors import UsageError, VidqaError
from vidqa.settings.edit import create, remember_setting, template
from vidqa.settings.load import load_settings
from vidqa.settings.schema import SETTINGS
from vidqa.utils.atomic_write import write_whole

MINE = """\
# my own words
model = "2b"   # why not

quality = "best"
[tui]
  theme = "nord" # dark

[keys]
quit = "f10"
"""


def test_the_template_says_every_default(tmp_path: Path) -> None:
    assert tomllib.loads(template()) == {"tui": {}}
    lines = template().splitlines()
    plain = "\n".join(line.removeprefix("# ") if " = " in line or line == "# [keys]" else line for line in lines)
    (tmp_path / "config.toml").write_text(plain)
    settings = load_settings({"VIDQA_CONFIG": str(tmp_path / "config.toml")})
    assert settings.keys == {"app.leave": "ctrl+q,f10"} and settings.model == "2b"
    defaults = load_settings({"VIDQA_CONFIG": str(tmp_path / "none.toml")})
    assert (settings.vram_bytes, settings.reserve_bytes, settings.max_tokens) == (None, 0, 256)
    assert settings.tui == defaults.tui and settings.weights == defaults.weights
    text = " ".join(template().replace("#", "").split())
    for setting in SETTINGS:
        assert f"({setting.flag}, {setting.variable}): {setting.allowed}" in text


def test_init_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "config.toml"
    create(path, force=False)
    assert path.read_text() == template()
    path.write_text(MINE)
    with pytest.raises(UsageError, match="exists already"):
        create(path, force=False)
    assert path.read_text() == MINE
    create(path, force=True)
    assert path.read_text() == template()


def test_one_value_changes_and_everything_else_stays(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(MINE)
    remember_setting(path, "tui.theme", "dracula")
    assert path.read_text() == MINE.replace('"nord"', '"dracula"')
    remember_setting(path, "model", "demo")
    assert path.read_text() == MINE.replace('"nord"', '"dracula"').replace('"2b"', '"demo"')


@pytest.mark.parametrize("text", ["", MINE, 'tui.images = "half"\n', 'tui = { images = "half" }\n', template()])
@pytest.mark.parametrize(
    ("key", "value"), [("tui.theme", "new"), ("model", "new"), ("tui.ascii", True), ("max_tokens", 9)]
)
def test_every_way_of_writing_tables_is_kept(tmp_path: Path, text: str, key: str, value: object) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    before = tomllib.loads(text)
    remember_setting(path, key, value)
    after = tomllib.loads(path.read_text())
    (before.setdefault("tui", {}) if "." in key else before)[key.rpartition(".")[2]] = value
    assert after == before
    kept = [line for line in text.splitlines() if line.startswith("#")]
    assert [line for line in path.read_text().splitlines() if line in kept] == kept


@given(value=st.text(min_size=1).filter(str.strip))
def test_any_text_comes_back_as_it_was(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return
    path = tmp_path_factory.mktemp("any") / "config.toml"
    path.write_text(MINE)
    remember_setting(path, "tui.theme", value)
    assert load_settings({"VIDQA_CONFIG": str(path)}).tui.theme == value
    assert "# my own words" in path.read_text() and "# why not" in path.read_text()


@pytest.mark.parametrize(("key", "value"), [("tui.them", "x"), ("tui.images", "big"), ("max_tokens", "9"), ("x", 1)])
def test_a_value_that_is_not_allowed_is_not_written(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "config.toml"
    path.write_text(MINE)
    with pytest.raises(UsageError, match=key):
        remember_setting(path, key, value)
    assert path.read_text() == MINE


def test_a_file_with_problems_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    for text in ("model = ", "tui = 3\n", "qualty = 'best'\n"):
        path.write_text(text)
        with pytest.raises(UsageError):
            remember_setting(path, "tui.theme", "nord")
        assert path.read_text() == text


def test_line_ends_links_and_permissions_stay(tmp_path: Path) -> None:
    kept, path = tmp_path / "dotfiles.toml", tmp_path / "config.toml"
    kept.write_bytes(MINE.replace("\n", "\r\n").encode())
    kept.chmod(0o600)
    path.symlink_to(kept)
    remember_setting(path, "tui.theme", "dracula")
    assert path.is_symlink()
    assert kept.read_bytes() == MINE.replace("nord", "dracula").replace("\n", "\r\n").encode()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [path, kept]


def test_a_failed_write_is_an_error_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    write_whole(path, "old")
    with pytest.raises(VidqaError, match="cannot be written"):
        create(path / "config.toml", force=True)  # a folder that is a file
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \ud800")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]

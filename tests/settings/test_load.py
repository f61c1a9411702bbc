"""Settings: which origin wins, what is refused, and the text of the refusal."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from vidqa.config import state_folder
from vidqa.errors import UsageError
from vidqa.settings.load import (
    Settings,
    TuiSettings,
    environment_problems,
    file_problems,
    load_settings,
    sourced_settings,
)
from vidqa.settings.schema import ENGINE_SETTINGS, SETTINGS, TUI_SETTINGS

# Two values for every setting, as a file says them, and as they are used.
WRITTEN: dict[str, list[tuple[Any, Any]]] = {
    "model": [("2b", "2b"), ("Some/One", "Some/One")],
    "device": [("cpu", "cpu"), ("cuda:1", "cuda:1")],
    "vram": [("8GiB", 8 * 2**30), (1000, 1000)],
    "reserve": [("512MiB", 2**29), (0, 0)],
    "quality": [("fast", "fast"), ("best", "best")],
    "max_wait": [("2min", 120.0), (20, 20.0)],
    "calibrate": [(False, False), (True, True)],
    "weights": [("nf4", "nf4"), ("int8", "int8")],
    "kv": [("int8", "int8"), ("native", "native")],
    "attention": [("tiled", "tiled"), ("flash", "flash")],
    "max_tokens": [(7, 7), (1000, 1000)],
    "subs": [("off", "off"), ("talk.srt", "talk.srt")],
    "subs_share": [(0.5, 0.5), ("0.1", 0.1)],
    "prune": [("25%", 0.25), (0.5, 0.5)],
    "sample": [("auto", "auto"), ("change", "change")],
    "focus": [("auto", "auto"), ("off", "off")],
    "tui.theme": [("nord", "nord"), ("dracula", "dracula")],
    "tui.images": [("half", "half"), ("none", "none")],
    "tui.ascii": [(True, True), (False, False)],
    "tui.history": [(False, False), (True, True)],
}


def environment(tmp_path: Path, text: str = "", **more: str) -> dict[str, str]:
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return {"VIDQA_CONFIG": str(path), **more}


def in_file(key: str, value: Any) -> str:
    table, _, name = key.rpartition(".")
    written = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"{f'[{table}]' if table else ''}\n{name} = {written}\n"


def source_of(key: str, *how: Any) -> tuple[Any, str, str]:
    one = next(one for one in sourced_settings(*how) if one.key == key)
    return one.value, one.origin, one.where


def test_settings_cover_every_field_and_every_default_is_allowed(tmp_path: Path) -> None:
    nowhere = {"VIDQA_CONFIG": str(tmp_path / "none.toml")}
    assert {setting.field for setting in ENGINE_SETTINGS} == {f.name for f in fields(Settings)} - {"tui", "keys"}
    assert {setting.field for setting in TUI_SETTINGS} == {f.name for f in fields(TuiSettings)}
    assert {one.origin for one in sourced_settings(nowhere)} == {"default"}
    assert load_settings(nowhere).vram_bytes is None and load_settings(nowhere).max_tokens == 256
    assert WRITTEN.keys() == {setting.key for setting in SETTINGS}


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.key)
def test_flag_wins_over_environment_over_file_over_default(tmp_path: Path, setting: Any) -> None:
    (first, used_first), (second, used_second) = WRITTEN[setting.key]
    variable = str(second).lower() if isinstance(second, bool) else str(second)
    named = environment(tmp_path, in_file(setting.key, first), **{setting.variable: variable})
    flag = first if isinstance(first, bool) else str(first)
    path = named["VIDQA_CONFIG"]
    assert source_of(setting.key, {"VIDQA_CONFIG": path}) == (used_first, "file", f"{path}:2")
    assert source_of(setting.key, named) == (used_second, "environment", setting.variable)
    assert source_of(setting.key, named, {setting.key: flag}) == (used_first, "flag", setting.flag)


def test_the_line_of_a_value_is_found_however_it_is_written(tmp_path: Path) -> None:
    text = '# model = "no"\n"model" = """\n2b"""\ntui = { theme = "nord",\\\n'.replace("\\\n", ' images = "half" }\n')
    named = environment(tmp_path, text + '[keys]\n# quit = "x"\nquit = "f10"\napp.help = "f1,?"\n')
    path = named["VIDQA_CONFIG"]
    lines_found = {one.key: one.where for one in sourced_settings(named) if one.origin == "file"}
    lines = {"model": 3, "tui.theme": 4, "tui.images": 4, "keys.quit": 7, "keys.app.help": 8}
    assert lines_found == {key: f"{path}:{line}" for key, line in lines.items()}
    assert load_settings(named).keys == {"quit": "f10", "app.help": "f1,?"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('qualty = "best"', [":1: qualty = ", "Did you mean 'quality'?"]),
        ('theme = "nord"', [":1: theme = ", "Did you mean 'theme' in the table [tui]?"]),
        ('[tui]\nmodel = "2b"', [":2: tui.model = ", "Did you mean 'model', above the first [table]?"]),
        ("[tui]\nimage = 'half'", [":2: tui.image = ", "'images' in the table [tui]"]),
        ("[zzzzzz]", [":1: zzzzzz = {}", "There is model, device", "and the table [keys]"]),
        ("tui = 3", ["tui = 3", "no such setting"]),
        ('quality = "bets"', [':1: quality = "bets" is not allowed', "fast, balanced or best", "mean 'best'?"]),
        ("quality = ['best']", ['["best"]', "fast, balanced or best"]),
        ("model = 2", ["model = 2 is not allowed", "demo, 2b"]),
        ('device = "gpu"', ["device", "cuda:1"]),
        ('vram = "much"', ["vram", "8GiB, or auto"]),
        ("reserve = -1", ["reserve = -1", "512MiB"]),
        ("vram = true", ["vram = true", "8GiB"]),
        ('max_wait = "0s"', ["max_wait", "20s or 2min", "auto", "or none"]),
        ("max_wait = false", ["max_wait = false", "20s"]),
        ("max_wait = [30]", ["max_wait", "20s"]),
        ("prune = 1.5", ["prune = 1.5", "auto for true repeats"]),
        ('prune = "nan"', ["prune", "0.25"]),
        ("prune = true", ["prune", "0.25"]),
        ("max_tokens = 0", ["max_tokens = 0", "whole number from 1"]),
        ('max_tokens = "9"', ['max_tokens = "9"', "whole number from 1"]),
        ("max_tokens = 1.5", ["max_tokens = 1.5"]),
        ("model = 2b", ["cannot be read", "line 1"]),
        ('[tui]\nascii = "yes"', ["tui.ascii", "true or false"]),
        ("[keys]\nquit = 3", ["keys.quit = 3", '"ctrl+r,f5"']),
        ('[keys]\nquit = "f1,,f2"', ["keys.quit"]),
        ('model = "2b', ["cannot be read", "Unterminated"]),
    ],
)
def test_refusals_name_the_line_and_the_allowed_values(tmp_path: Path, text: str, said: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        load_settings(environment(tmp_path, text))
    assert all(part in str(caught.value) for part in [str(tmp_path / "config.toml"), *said]), str(caught.value)


def test_all_problems_are_counted(tmp_path: Path) -> None:
    named = environment(tmp_path, 'qualty="best"\nkv="int7"\nmax_tokens=1\n', VIDQA_DEVICE="gpu", VIDQA_TUI_ASCII="so")
    path = Path(named["VIDQA_CONFIG"])
    assert [problem.what.split(" ")[0] for problem in file_problems(path)] == [f"{path}:1:", f"{path}:2:"]
    variables = [problem.what.split("=")[0] for problem in environment_problems(named)]
    assert variables == ["VIDQA_DEVICE", "VIDQA_TUI_ASCII"]
    with pytest.raises(UsageError, match="lists 3 more"):
        load_settings(named)


def test_ids_of_keys_are_checked_where_they_are_known(tmp_path: Path) -> None:
    named = environment(tmp_path, '[keys]\nquit = "f10"\nhlep = "f1"\n')
    assert load_settings(named).keys == {"quit": "f10", "hlep": "f1"}
    with pytest.raises(UsageError, match=r"keys\.hlep.*no key binding has this id.*mean help\?"):
        load_settings(named, key_ids=("quit", "help"))


@pytest.mark.parametrize("word", ["1", "true", "ON", "Yes"])
def test_booleans_in_the_environment(tmp_path: Path, word: str) -> None:
    assert load_settings(environment(tmp_path, VIDQA_TUI_ASCII=word)).tui.ascii is True


def test_flags_override_the_file_also_with_auto_and_none(tmp_path: Path) -> None:
    named = environment(tmp_path, 'vram = "8GiB"\nmax_wait = "5s"\nweights = "nf4"\n[tui]\nascii = true\n')
    settings = load_settings(named, {"vram": "auto", "max_wait": "none", "weights": "auto", "tui.ascii": False})
    assert (settings.vram_bytes, settings.max_wait_seconds, settings.weights) == (None, None, "auto")
    assert settings.tui.ascii is False
    with pytest.raises(UsageError, match=r"^--vram lots is not allowed\. Allowed: a size"):
        load_settings(named, {"vram": "lots"})


def test_control_characters_in_keys_are_escaped(tmp_path: Path) -> None:
    (problem,) = file_problems(Path(environment(tmp_path, '"\\u001b[2J" = "\\u202e"\n')["VIDQA_CONFIG"]))
    assert "\\x1b[2J" in problem.what and "\\u202e" in problem.what
    assert "\x1b" not in str(problem) and "\u202e" not in str(problem)


def test_an_unreadable_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_bytes(b"model = '\xff\xfe'")
    for path in (tmp_path / "config.toml", tmp_path):
        with pytest.raises(UsageError, match="cannot be read"):
            load_settings({"VIDQA_CONFIG": str(path)})


def test_the_state_folder_is_the_named_one_else_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_folder({"VIDQA_STATE": str(tmp_path)}) == tmp_path
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert state_folder({}).name == "vidqa"

"""`vidqa config`, and the settings in the other commands."""

import json
import tomllib
from pathlib import Path

import pytest

from vidqa.cli.arguments import make_request, settings_for
from vidqa.cli.console import ExitCode
from vidqa.cli.main import build_parser, run
from vidqa.errors import UsageError
from vidqa.settings.schema import SETTINGS

DEMO = str(Path(__file__).parents[2] / "assets" / "demo.mp4")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setenv("VIDQA_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path / "config.toml"


def shown(capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, list[str]]:
    assert run(["config", "show", *flags]) == ExitCode.OK
    return {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[2:]}


def test_show_lists_every_value_with_its_origin(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text('model = "2b"\nkv = "native"\nvram = "4GiB"\n[tui]\nascii = true\n[keys]\nquit = "f10"\n')
    monkeypatch.setenv("VIDQA_KV", "int8")
    monkeypatch.setenv("VIDQA_VRAM", "6GiB")
    values = shown(capsys, "--vram", "8GiB", "--attn", "tiled")
    assert values["model"] == ["2b", "file", f"{path}:1"]
    assert values["kv"] == ["int8", "environment", "VIDQA_KV"]
    assert values["vram"] == ["8GiB", "flag", "--vram"]
    assert values["attention"] == ["tiled", "flag", "--attn"]
    assert values["tui.ascii"] == ["true", "file", f"{path}:5"]
    assert values["keys.quit"] == ["f10", "file", f"{path}:7"]
    assert values["quality"] == ["balanced", "default"]
    assert list(values)[:-1] == [setting.key for setting in SETTINGS]


def test_show_as_json(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text("max_tokens = 9\n")
    assert run(["config", "show", "--json", "--ascii"]) == ExitCode.OK
    values = json.loads(capsys.readouterr().out)
    assert (values["schema_version"], values["file"], values["exists"]) == (1, str(path), True)
    rows = {row["key"]: (row["value"], row["origin"], row["where"]) for row in values["settings"]}
    assert rows["max_tokens"] == (9, "file", f"{path}:1")
    assert rows["model"] == (None, "default", "")
    assert rows["tui.ascii"] == (True, "flag", "--ascii")


def test_path_init_and_validate(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "path"]) == ExitCode.OK
    assert run(["config", "validate"]) == ExitCode.OK
    assert run(["config", "init"]) == ExitCode.OK
    assert capsys.readouterr().out == f"{path}\n{path}\n"
    assert run(["config", "validate"]) == ExitCode.OK
    assert run(["config", "init"]) == ExitCode.USAGE
    assert "--force" in capsys.readouterr().err
    path.write_text('model = "2b"')
    assert run(["config", "init", "--force"]) == ExitCode.OK
    assert tomllib.loads(path.read_text()) == {"tui": {}}


def test_validate_lists_every_problem(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_text('qualty = "best"\nmax_tokens = "9"\n')
    monkeypatch.setenv("VIDQA_KV", "int7")
    assert run(["config", "validate"]) == ExitCode.USAGE
    paragraphs = capsys.readouterr().err.split("vidqa:")[1:]
    assert len(paragraphs) == 3
    for paragraph, said in zip(paragraphs, ("'quality'", "max_tokens", "VIDQA_KV=int7"), strict=True):
        assert said in paragraph
    assert run(["config", "validate", str(path)]) == ExitCode.USAGE
    assert "VIDQA_KV" not in capsys.readouterr().err  # a file that is named is looked at alone
    assert run(["config", "validate", str(path) + "x"]) == ExitCode.USAGE
    assert "There is no file" in capsys.readouterr().err


def test_control_characters_are_escaped(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = tmp_path / "\x1b[2J.toml"
    evil.write_text('model = "\\u001b]52;c;eA==\\u0007"\n"\\u001b[2J" = 1\n')
    monkeypatch.setenv("VIDQA_CONFIG", str(evil))
    assert run(["config", "path"]) == ExitCode.OK
    assert run(["config", "validate"]) == ExitCode.USAGE
    evil.write_text('model = "\\u001b]52;c;eA==\\u0007"\n')
    assert run(["config", "show"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert "\\x1b]52" in out


def test_commands_use_the_settings(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text('model = "2b"\ndevice = "cpu"\nweights = "int8"\nkv = "int8"\nvram = "12GiB"\n')

    def planned(*flags: str) -> tuple[str, str, str, int]:
        assert run(["plan", DEMO, "--gpu", "t4", "--json", *flags]) == ExitCode.OK
        plan = json.loads(capsys.readouterr().out)["plan"]
        return plan["model"], plan["weights"], plan["kv"], plan["budget_bytes"]

    assert planned() == ("Qwen/Qwen2-VL-2B-Instruct", "int8", "int8", 12 * 2**30)
    flags = ["--model", "7b", "--weights", "nf4", "--kv", "native", "--vram", "13GiB"]
    assert planned(*flags) == ("Qwen/Qwen2-VL-7B-Instruct", "nf4", "fp16", 13 * 2**30)
    assert planned("--vram", "auto")[-1] > 13 * 2**30


def test_a_refused_setting_stops_every_command(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text('quality = "bets"\n')
    planned = [[command, DEMO] for command in ("plan", "frames", "sweep", "profile")]
    for words in (["ask", DEMO, "what?"], *planned, ["doctor"], ["warmup"]):
        assert run(words) == ExitCode.USAGE
        assert "Did you mean 'best'?" in " ".join(capsys.readouterr().err.split())


def test_sweep_and_profile_have_a_shorter_answer_by_default(path: Path) -> None:
    path.write_text("max_tokens = 999\n")
    lengths = {}
    for words in (["ask", DEMO, "q"], ["sweep", DEMO], ["profile", DEMO], ["sweep", DEMO, "--max-tokens", "5"]):
        arguments = build_parser().parse_args(words)
        request = make_request(arguments, settings_for(arguments), "what?")
        lengths[" ".join(words[:1] + words[2:])] = request.max_tokens
    assert lengths == {"ask q": 999, "sweep": 16, "profile": 16, "sweep --max-tokens 5": 5}


def test_debug_is_accepted_before_and_behind_the_part(path: Path) -> None:
    path.write_text("model = 3")
    for words in (["config", "--debug", "show"], ["config", "show", "--debug"]):
        with pytest.raises(UsageError):
            run(words)


def test_set_keeps_comments_and_checks_the_value(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text('# mine\nmodel = "2b"  # the small one\n')
    assert run(["config", "set", "model", "7b"]) == 0
    assert run(["config", "set", "tui.history", "false"]) == 0
    assert run(["config", "set", "keys.app.leave", "ctrl+x"]) == 0
    text = path.read_text()
    assert text.startswith('# mine\nmodel = "7b"  # the small one\n') and "history = false" in text
    assert '"app.leave" = "ctrl+x"' in text and f'{path}: model = "7b"' in capsys.readouterr().err
    assert run(["config", "validate"]) == 0
    for key, value, words in (
        ("tui.images", "big", "Allowed: "),
        ("theme", "nord", "Did you mean tui.theme?"),
        ("modle", "2b", "Did you mean model?"),
        ("keys.app.leave", "ctrl+q, ", "is not allowed"),
    ):
        assert run(["config", "set", key, value]) == 2
        assert words in " ".join(capsys.readouterr().err.split())
    assert path.read_text() == text, "what is refused changes nothing"


def test_set_makes_a_file_and_says_when_the_environment_wins(
    path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIDQA_MODEL", "2b")
    assert run(["config", "set", "model", "7b"]) == 0
    assert "VIDQA_MODEL is set" in capsys.readouterr().err and path.read_text() == 'model = "7b"\n'

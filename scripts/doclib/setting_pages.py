"""The pages of settings and of exit codes, made from the code that reads and returns them."""

from doclib.markdown import page, table
from vidqa import errors
from vidqa.cli.console import ExitCode, exit_code_for
from vidqa.errors import VidqaError
from vidqa.settings.schema import SETTINGS, Setting

_MEANINGS = {
    ExitCode.OK: "done",
    ExitCode.FAILED: "failed for another reason than those below",
    ExitCode.USAGE: "an option, a value or a setting is wrong, or the command line cannot be read",
    ExitCode.SOME_FAILED: "`vidqa caption` finished, and at least one clip failed",
    ExitCode.DOES_NOT_FIT: "no plan fits the memory or the model's context",
    ExitCode.MODEL_MISSING: "the model is not on this machine and was not fetched",
    ExitCode.UNREADABLE_VIDEO: "the video does not exist or cannot be read",
    ExitCode.INTERRUPTED: "Ctrl-C",
    ExitCode.TERMINATED: "SIGTERM",
}


def render_exit_codes() -> str:
    """Return docs/reference/exit-codes.md; raises KeyError for a code without a meaning here."""
    rows = [(str(int(code)), _MEANINGS[code], ", ".join(f"`{name}`" for name in _errors(code))) for code in ExitCode]
    head = ("code", "meaning", "the same in Python")
    return page("Exit codes", [*table(head, rows), "", "Codes stay the same from version to version."])


def _errors(code: ExitCode) -> list[str]:
    """Return the names of the errors of `vidqa.errors` that end a command with this code."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, VidqaError)]
    return [kind.__name__ for kind in kinds if exit_code_for(kind("")) == code]


def render_settings() -> str:
    """Return docs/reference/settings.md."""
    lines = [
        "`vidqa config init` writes a file with every default, commented out; `vidqa config path` prints where it is.",
        "A value is taken from the first of these that has one: flag, environment variable, file, default.",
        "`vidqa config show` prints every value and where it comes from; `vidqa config validate` lists every mistake.",
        "",
        *table(("key", "flag", "variable", "meaning", "allowed", "default"), map(_row, SETTINGS)),
        "",
        "In the file, `tui.theme` is `theme` in the table `[tui]`:",
        "",
        "```toml",
        'model = "2b"',
        'reserve = "1GiB"',
        "",
        "[tui]",
        'theme = "nord"',
        "",
        "[keys]",
        '"ask.stop" = "escape,ctrl+x"',
        "```",
        "",
        "`[keys]` gives an action of the session other keys. It has no variable and no flag.",
    ]
    return page("Settings", lines)


def _row(setting: Setting) -> tuple[str, ...]:
    written = str(setting.default).lower() if isinstance(setting.default, bool) else setting.default
    default = setting.unset if written is None else f"`{written}`"
    names = (f"`{setting.key}`", f"`{setting.flag}`", f"`{setting.variable}`")
    return (*names, setting.meaning, setting.allowed, default)

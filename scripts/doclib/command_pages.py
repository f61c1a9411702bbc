"""The page of all commands and their options, made from the argument parser."""

import argparse
from collections.abc import Iterator

from doclib.markdown import page, table
from vidqa.cli.main import build_parser


def render_commands() -> str:
    """Return docs/reference/commands.md."""
    parser = build_parser()
    lines = [
        "Every command and every option. `vidqa COMMAND --help` prints the same. Without a command, `vidqa` opens the"
        " session on a terminal.",
        "",
        *table(("command", "what it does"), _summaries(parser)),
    ]
    for name, command in subcommands(parser).items():
        lines += ["", *_command(f"vidqa {name}", command)]
    return page("Commands", lines)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the subparsers of a parser by name, in their order; empty if it has none."""
    found: dict[str, argparse.ArgumentParser] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found.update(action.choices)
    return found


def _summaries(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield f"[`vidqa {choice.dest}`](#vidqa-{choice.dest})", choice.help or ""


def _command(name: str, parser: argparse.ArgumentParser, level: int = 2) -> list[str]:
    lines = [f"{'#' * level} {name}", "", "```text", _usage(name, parser), "```"]
    if parser.description:
        lines += ["", parser.description]
    for group in parser._action_groups:
        rows = [_row(parser, action) for action in group._group_actions if _is_shown(action)]
        if rows:
            title = (group.title or "").capitalize()
            lines += ["", f"**{title}**", "", *table(("argument", "meaning"), rows)]
    for part, subparser in subcommands(parser).items():
        lines += ["", *_command(f"{name} {part}", subparser, level + 1)]
    return lines


def _is_shown(action: argparse.Action) -> bool:
    hidden = action.help == argparse.SUPPRESS
    return not hidden and not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _usage(name: str, parser: argparse.ArgumentParser) -> str:
    """Return a usage line without the list of options."""
    has_options = any(action.option_strings for action in parser._actions if _is_shown(action))
    positionals = [_positional(action) for action in parser._actions if not action.option_strings]
    return " ".join([name, *["[options]"] * has_options, *positionals])


def _positional(action: argparse.Action) -> str:
    value = _value(action)
    return {"?": f"[{value}]", "*": f"[{value} ...]", "+": f"{value} [{value} ...]"}.get(str(action.nargs), value)


def _value(action: argparse.Action) -> str:
    """Return what stands for the argument's value; empty for a switch."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.upper()


def _row(parser: argparse.ArgumentParser, action: argparse.Action) -> tuple[str, str]:
    value = _value(action)
    value = f"[{value}]" if action.option_strings and action.nargs == "?" else value
    words = [f"{option} {value}".rstrip() for option in action.option_strings] or [_positional(action)]
    meaning = (action.help or "") % {**vars(action), "prog": parser.prog}
    return ", ".join(f"`{word}`" for word in words), meaning

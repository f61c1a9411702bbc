"""Entry point: the command line, or the interactive session, imported late. May import both."""

import argparse
import os
import sys

from vidqa.cli.main import run


def main() -> int:
    """Entry point of the `vidqa` command; returns the exit code."""
    return run(sys.argv[1:], open_session)


def open_session(arguments: argparse.Namespace) -> int:
    """Open the interactive session that the arguments describe; returns the exit code."""
    # Textual reads this at import: milliseconds after which Esc is a key and not the start of an escape sequence.
    os.environ.setdefault("ESCDELAY", "50")
    from vidqa.cli.arguments import given_flags, make_config, make_request
    from vidqa.config import config_path, state_folder
    from vidqa.models.registry import first_model
    from vidqa.settings.load import load_settings
    from vidqa.tui.bindings import ACTION_IDS
    from vidqa.tui.launch import open_app
    from vidqa.tui.launch_options import LaunchOptions

    settings = load_settings(flags=given_flags(arguments), key_ids=ACTION_IDS)
    video, arguments.video = arguments.video, arguments.video or ""
    model = first_model(settings.model)
    options = LaunchOptions(
        engine=make_config(arguments, settings, model or "demo"),
        request=make_request(arguments, settings, ""),
        model=model,
        video=video,
        state=state_folder(),
        settings_file=config_path(),
        theme=settings.tui.theme,
        images=settings.tui.images,
        ascii=settings.tui.ascii,
        keep_history=settings.tui.history,
        keys=settings.keys,
    )
    return open_app(options)


if __name__ == "__main__":
    raise SystemExit(main())

"""Render the generated pages of docs/ and the generated parts of README.md and docs/python.md from the code.

Run it after changing an option, a setting, a key of the session, an exit code, a schema in docs/schema, a public
dataclass, or what plans choose. `--check` writes nothing and exits with 1 if a page is
out of date.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from doclib.api_page import render_fields, render_methods
from doclib.card_table import render_best, render_cards, render_models
from doclib.command_pages import render_commands
from doclib.key_page import render_keys
from doclib.markdown import replace_block
from doclib.schema_pages import render_json
from doclib.setting_pages import render_exit_codes, render_settings

PAGES: dict[str, Callable[[], str]] = {
    "docs/reference/commands.md": render_commands,
    "docs/reference/settings.md": render_settings,
    "docs/reference/keys.md": render_keys,
    "docs/reference/exit-codes.md": render_exit_codes,
    "docs/reference/json.md": render_json,
}
BLOCKS: dict[tuple[str, str], Callable[[], list[str]]] = {
    ("README.md", "best"): render_best,
    ("README.md", "models"): render_models,
    ("README.md", "cards"): render_cards,
    ("docs/python.md", "methods"): render_methods,
    ("docs/python.md", "fields"): render_fields,
}


def render(name: str) -> str:
    """Return a page of PAGES, or one with parts of BLOCKS, as it should be; `name` is relative to the checkout."""
    text = PAGES[name]() if name in PAGES else (ROOT / name).read_text(encoding="utf-8")
    for (page, block), make_lines in BLOCKS.items():
        if page == name:
            text = replace_block(text, block, make_lines())
    return text


def names() -> list[str]:
    """Return every page that is generated, wholly or in part."""
    return [*PAGES, *dict.fromkeys(page for page, _ in BLOCKS)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    old = []
    for name in names():
        path, text = ROOT / name, render(name)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            old.append(name)
            if not check:
                path.write_text(text, encoding="utf-8")
    print("\n".join(old) if old else "every page is up to date")
    return int(check and bool(old))


if __name__ == "__main__":
    raise SystemExit(main())

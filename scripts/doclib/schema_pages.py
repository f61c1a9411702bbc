"""The page of JSON outputs, made from the schema files in docs/schema."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doclib.markdown import page, table

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schema"
ORDER = (
    "ask", "find", "plan", "plan-gpus", "frames", "caption-record", "caption-progress", "caption-journal",
    "caption-plan",
    "caption-status", "history", "history-export", "models", "doctor", "config", "sweep", "profile", "common",
)  # fmt: skip
Schema = dict[str, Any]


def load_schemas() -> dict[str, Schema]:
    """Return every schema by its name; `common` holds the parts that several share."""
    return {path.name.removesuffix(".schema.json"): json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(SCHEMAS.glob("*.schema.json"))}  # fmt: skip


def render_json() -> str:
    """Return docs/reference/json.md; raises ValueError if a schema is not in `ORDER`."""
    schemas = load_schemas()
    if set(schemas) != set(ORDER):
        raise ValueError(f"docs/schema and ORDER differ: {set(schemas) ^ set(ORDER)}")
    lines = [
        "`--json` prints one object per line on stdout. The schemas (JSON Schema 2020-12) are files in"
        " [docs/schema](../schema/ask.schema.json); the tests validate the program's real output against them.",
        "",
        "`schema_version` changes when a field changes its meaning or goes. New fields may come at any time. Sizes are"
        " bytes (`_bytes`) and times are seconds (`_s`, `seconds`). `null` means unknown or not applicable.",
    ]
    for name in ORDER:
        lines += ["", *_section(name, schemas[name])]
    return page("JSON", lines)


def _section(name: str, schema: Schema) -> Iterator[str]:
    yield f"## {schema['title']}"
    yield ""
    yield f"{schema['description']} Schema: [{name}.schema.json](../schema/{name}.schema.json)."
    for part, variant in schema.get("$defs", {}).items():
        yield from ("", f'<a id="{name}-{part}"></a>**{part}**: {variant["description"]}', "", *_table(variant))
    if "properties" in schema:
        yield from ("", *_table(schema))


def _table(schema: Schema) -> list[str]:
    return table(("field", "type", "meaning"), _rows(schema, ""))


def _rows(schema: Schema, prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, value in schema.get("properties", {}).items():
        path = f"{prefix}{name}"
        yield f"`{path}`", _type(value), value["description"]
        inner = value.get("items", value)
        if isinstance(value.get("additionalProperties"), dict):
            yield from _rows(value["additionalProperties"], f"{path}.*.")
        yield from _rows(inner, f"{path}[]." if inner is not value else f"{path}.")


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        file, _, pointer = schema["$ref"].partition("#/$defs/")
        return f"[{pointer}](#{file.removesuffix('.schema.json')}-{pointer})"
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value)}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    words = " or ".join(kinds)
    return f"{words} of {_type(schema['items'])}" if "items" in schema and "array" in kinds else words

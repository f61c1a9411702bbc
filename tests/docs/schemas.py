"""Validate objects against docs/schema, with every undocumented field an error."""

import json
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parents[2] / "docs" / "schema"


def strict(schema: Any) -> Any:
    """Return a schema that also refuses fields which it does not name; the published files allow new ones."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") in ("object", ["object", "null"]):
        closed.setdefault("additionalProperties", False)
    return closed


def load_schema(name: str) -> Any:
    """Return docs/schema/NAME.schema.json."""
    return json.loads((SCHEMAS / f"{name}.schema.json").read_text(encoding="utf-8"))


def problems(name: str, value: Any) -> list[str]:
    """Return what is wrong with a value by a schema, each with its place; empty where it is right."""
    files = {path.name: strict(json.loads(path.read_text(encoding="utf-8"))) for path in SCHEMAS.glob("*.json")}
    resources = [(file, Resource.from_contents(contents)) for file, contents in files.items()]
    validator = Draft202012Validator(files[f"{name}.schema.json"], registry=Registry().with_resources(resources))
    return [f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(value)]

"""`phalanx schema`: the JSON schema of RunConfig, generated from its dataclasses and their docstrings."""

import ast
import dataclasses
import inspect
import itertools
import json
import textwrap
import typing
from enum import Enum
from functools import cache
from typing import Any

from launch.cli_help import parser
from launch.keys import split_optional
from orchestrator.config import RunConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}

EXAMPLES = """  phalanx schema > phalanx.schema.json
  phalanx schema | jq '.properties.train.properties | keys'

Name it in an editor's YAML settings, or in a first line # yaml-language-server: $schema=phalanx.schema.json,
to have the run folder's config.yaml checked and completed."""


def run(argv: list[str]) -> int:
    """Print the schema."""
    parser(
        "schema", "Print the JSON schema of the config: keys, types, defaults, meanings.", EXAMPLES, ""
    ).parse_args(argv)
    print(json.dumps(config_schema(), indent=2))
    return 0


def config_schema() -> dict[str, Any]:
    """JSON schema (2020-12) of the resolved config, what `config.yaml` in a run folder holds."""
    return {"$schema": DIALECT, "title": "phalanx run", **_object_schema(RunConfig)}


@cache
def field_docs(schema: type) -> dict[str, str]:
    """Field -> the string literal that follows it in the class body, its lines joined."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(schema)))
    [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    docs = {}
    for node, after in itertools.pairwise(body):
        if not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)):
            continue
        if isinstance(node, ast.AnnAssign | ast.Assign):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            docs[ast.unparse(target)] = " ".join(str(after.value.value).split())
    return docs


def _object_schema(schema: type) -> dict[str, Any]:
    hints, docs = typing.get_type_hints(schema), field_docs(schema)
    properties, required = {}, []
    for field in dataclasses.fields(schema):
        entry = _type_schema(hints[field.name])
        if field.name in docs:
            described = [docs[field.name], entry.get("description", "")]
            entry["description"] = " ".join(filter(None, described))
        if field.default is not dataclasses.MISSING:
            entry["default"] = field.default.value if isinstance(field.default, Enum) else field.default
        elif field.default_factory is not dataclasses.MISSING and not dataclasses.is_dataclass(hints[field.name]):
            entry["default"] = field.default_factory()
        elif field.default_factory is dataclasses.MISSING:
            required.append(field.name)
        properties[field.name] = entry
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _type_schema(annotation: Any) -> dict[str, Any]:
    kind, nullable = split_optional(annotation)
    if kind is Any:
        return {}
    if isinstance(kind, type) and issubclass(kind, Enum):
        docs = field_docs(kind)
        meanings = " ".join(f"{name}: {doc}" for name, doc in docs.items())
        return {"enum": [member.value for member in kind]} | ({"description": meanings} if meanings else {})
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _object_schema(kind)
    origin = typing.get_origin(kind)
    if origin is list:
        return {"type": "array", "items": _type_schema(typing.get_args(kind)[0])}
    if origin is dict:
        return {"type": "object"}
    return {"type": [_TYPES[kind], "null"] if nullable else _TYPES[kind]}

"""The keys of RunConfig and what values they take, read from its dataclasses. Knows nothing of Hydra.

An override is judged here on its own, so that every wrong one is named at once and in our words; Hydra would
stop at the first.
"""

import dataclasses
import types
import typing
from enum import Enum
from functools import cache
from typing import Any

from launch.suggest import near_key, not_known
from orchestrator.config import RunConfig

_NEEDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text", dict: "a dict"}
_EXAMPLES = {int: "100", float: "0.001", bool: "true", str: "some_text", dict: "{a:1}"}


@cache
def key_types() -> dict[str, Any]:
    """Dotted keys, groups and leaves, with annotations: `train` -> TrainConfig, `train.steps` -> int."""
    found: dict[str, Any] = {}
    _collect(RunConfig, "", found)
    return found


def _collect(schema: type, prefix: str, found: dict[str, Any]) -> None:
    hints = typing.get_type_hints(schema)
    for field in dataclasses.fields(schema):
        key = prefix + field.name
        found[key] = hints[field.name]
        if dataclasses.is_dataclass(hints[field.name]):
            _collect(hints[field.name], key + ".", found)


def split_optional(annotation: Any) -> tuple[Any, bool]:
    """`int | None` -> (int, True); `int` -> (int, False); Any takes null."""
    if isinstance(annotation, types.UnionType):
        inner = [kind for kind in typing.get_args(annotation) if kind is not types.NoneType]
        return inner[0], len(inner) < len(typing.get_args(annotation))
    return annotation, annotation is Any


def free_form_root(key: str) -> str | None:
    """`parallel.ds_config` for anything below it: the free-form dict that takes any key; None elsewhere."""
    for root, annotation in key_types().items():
        if typing.get_origin(annotation) is dict and key.startswith(root + "."):
            return root
    return None


def key_problem(key: str, known_groups: tuple[str, ...]) -> str | None:
    """The sentence for a key that is neither in the schema nor a group of choices."""
    if key in key_types() or key in known_groups or free_form_root(key):
        return None
    near = near_key(key, [*key_types(), *known_groups])
    hint = f"did you mean {near}?" if near else "phalanx schema prints every key"
    return f"{key} is not a key; {hint}"


def value_problem(key: str, text: str, value: Any, annotation: Any) -> str | None:
    """The sentence for a value that `key` does not take; `text` is the value as it was typed."""
    kind, nullable = split_optional(annotation)
    is_interpolation = isinstance(value, str) and "${" in value  # known only once everything is composed
    if is_interpolation or kind is Any or (value is None and nullable):
        return None
    if isinstance(kind, type) and issubclass(kind, Enum):
        names = [member.name for member in kind]
        return None if value in names else not_known(f"{key}={text}", str(value), names)
    if dataclasses.is_dataclass(kind):
        return fields_problem(key, text, value)
    if typing.get_origin(kind) is list:
        return _list_problem(key, text, value, typing.get_args(kind)[0])
    return _plain_problem(key, text, value, typing.get_origin(kind) or kind, nullable)


def _plain_problem(key: str, text: str, value: Any, kind: type, nullable: bool) -> str | None:
    if _fits(kind, value):
        return None
    way_out = f"write it as in {key}={_EXAMPLES[kind]}"
    if kind is int and isinstance(value, float) and value.is_integer():
        way_out = f"use {key}={int(value)}"
    null = " or null" if nullable else ""
    return f"{key}={text} is not {_NEEDS[kind]}{null}; {way_out}"


def _fits(kind: type, value: Any) -> bool:
    if isinstance(value, bool):
        return kind in (bool, str)
    if kind is float:
        return isinstance(value, int | float)
    if kind is str:
        return isinstance(value, str | int | float)
    return isinstance(value, kind)


def fields_problem(key: str, text: str, value: Any) -> str | None:
    """The first problem of a nested dict of fields; `key` is "" for a whole config."""
    if not isinstance(value, dict):
        what = f"{key}={text}" if key else f"{text!r}"
        return f"{what} is not a dict of fields; set them one by one, as in {key or 'train'}.FIELD=VALUE"
    for name, item in value.items():
        child = f"{key}.{name}" if key else str(name)
        problem = key_problem(child, ()) or value_problem(child, str(item), item, key_types().get(child, Any))
        if problem:
            return problem
    return None


def _list_problem(key: str, text: str, value: Any, item_kind: Any) -> str | None:
    if isinstance(value, list) and all(value_problem(key, text, item, item_kind) is None for item in value):
        return None
    many = {float: "numbers", int: "integers", str: "texts"}[item_kind]
    example = {float: "[0.9,0.95]", int: "[1,2]", str: "[a,b]"}[item_kind]
    return f"{key}={text} is not a list of {many}; write it as in '{key}={example}'"

"""Frozen values to JSON and back: plan.json, a worker's spec. Plan half."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar, cast

T = TypeVar("T")


def encode(value: Any) -> Any:
    """A dataclass (or anything inside one) as plain JSON types; mapping keys become strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return value


def decode(kind: type[T], raw: Any) -> T:
    """The inverse of `encode` for the dataclass `kind`. Raises TypeError or KeyError where `raw` does not fit."""
    return cast(T, _decode(kind, raw))


def _decode(kind: Any, raw: Any) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if raw is None else _decode(next(a for a in arguments if a is not type(None)), raw)
    if origin in (list, tuple):
        return origin(_decode(arguments[0], item) for item in raw)
    if origin is dict:
        return {_decode(arguments[0], key): _decode(arguments[1], item) for key, item in raw.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _decode_fields(kind, raw)
    if isinstance(kind, type) and issubclass(kind, Enum | int | float) and not isinstance(raw, bool):
        return kind(raw)
    return raw


def _decode_fields(kind: type, raw: Mapping[str, Any]) -> Any:
    """Fields that this version does not know are left out: a newer version wrote them."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    return kind(**{name: _decode(hints[name], item) for name, item in raw.items() if name in known})

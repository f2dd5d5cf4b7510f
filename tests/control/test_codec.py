"""Frozen values to JSON and back, for every value that crosses a process or a restart."""

import dataclasses
import enum
import json
import types
import typing
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import ModelConfig
from orchestrator.codec import decode, encode
from orchestrator.data.manifest import Manifest
from orchestrator.spec import Placement, RankMemory, ResumePoint, RunPlan, WorkerSpec

FLOATS = st.floats(allow_nan=False)
JSON = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=5)
FREE = st.dictionaries(st.text(max_size=5), JSON | st.lists(JSON, max_size=3), max_size=3)


PLAIN = {str: st.text(max_size=8), int: st.integers(), float: FLOATS, bool: st.booleans(), Any: JSON}


def values_of(kind: Any) -> st.SearchStrategy:
    """Any value that the annotation `kind` allows."""
    if kind in PLAIN:
        return PLAIN[kind]
    if typing.get_origin(kind) is not None:
        return _values_of_generic(typing.get_origin(kind), typing.get_args(kind))
    if issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(kind)})


def _values_of_generic(origin: Any, arguments: tuple[Any, ...]) -> st.SearchStrategy:
    if origin in (typing.Union, types.UnionType):
        return st.one_of([st.none() if a is type(None) else values_of(a) for a in arguments])
    if origin is dict:
        return FREE if arguments[1] is Any else st.dictionaries(*map(values_of, arguments), max_size=3)
    return st.lists(values_of(arguments[0]), max_size=3).map(origin)


@pytest.mark.parametrize("kind", [WorkerSpec, RunPlan, Placement, ResumePoint, Manifest, ModelConfig])
@settings(max_examples=25)
@given(st.data())
def test_a_value_survives_json(kind, data):
    value = data.draw(values_of(kind))
    text = json.dumps(encode(value))
    assert decode(kind, json.loads(text)) == value
    assert json.dumps(encode(decode(kind, json.loads(text)))) == text


class Colour(enum.StrEnum):
    red = "red"


@dataclass(frozen=True)
class Inner:
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Outer:
    inner: Inner | None
    by_stage: dict[int, Inner]
    colour: Colour
    share: float
    is_on: bool = True


OUTER = Outer(Inner((1, 2)), {3: Inner(())}, Colour.red, 2.0)


def test_encoding_is_plain_json():
    assert encode(OUTER) == {
        "inner": {"counts": [1, 2]},
        "by_stage": {"3": {"counts": []}},
        "colour": "red",
        "share": 2.0,
        "is_on": True,
    }
    assert type(encode(OUTER)["colour"]) is str


def test_types_come_back_not_only_equal_values():
    found = decode(Outer, {**encode(OUTER), "share": 2})
    assert found == OUTER
    assert type(found.share) is float
    assert type(found.colour) is Colour
    assert type(found.inner.counts) is tuple
    assert list(found.by_stage) == [3]


def test_null_and_defaults():
    raw = {**encode(OUTER), "inner": None}
    del raw["is_on"]
    assert decode(Outer, raw) == dataclasses.replace(OUTER, inner=None)


def test_a_field_of_a_newer_version_is_left_out():
    assert decode(Outer, {**encode(OUTER), "from_the_future": 1}) == OUTER


@pytest.mark.parametrize(
    "change", [{"colour": "mauve"}, {"inner": {"counts": ["many"]}}, {"by_stage": {"three": {"counts": []}}}]
)
def test_what_does_not_fit_is_refused(change):
    with pytest.raises((TypeError, KeyError, ValueError)):
        decode(Outer, {**encode(OUTER), **change})


def test_a_missing_field_is_refused():
    raw = encode(OUTER)
    del raw["share"]
    with pytest.raises(TypeError, match="share"):
        decode(Outer, raw)


def test_rank_memory_keeps_its_integers():
    memory = RankMemory(**{f.name: 2**60 + 1 for f in dataclasses.fields(RankMemory)})
    assert decode(RankMemory, json.loads(json.dumps(encode(memory)))) == memory

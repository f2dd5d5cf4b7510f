"""One override as it was typed: judged on its own and put in the form Hydra takes. Knows nothing of Hydra.

`KEY=VALUE`, or `+KEY=VALUE` and `~KEY` below the free-form dicts (`parallel.ds_config`). A text is taken as
it stands: `data.path=/data/a,b(1)` needs no quoting beyond the shell's.
"""

import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from launch.keys import free_form_root, key_problem, key_types, split_optional, value_problem
from launch.suggest import not_known

NO_EXPERIMENT = "null"


@dataclass(frozen=True, slots=True)
class Override:
    """What one word of the command line came to: `hydra` for Hydra, or a problem for the person."""

    key: str
    hydra: str = ""
    problem: str | None = None


class MalformedError(Exception):
    """The value is not in Hydra's grammar; the message says where."""


class ManyValuesError(Exception):
    """The value is a sweep (`1,2` or `range(1,3)`): a run takes one."""


def judge(word: str, choices: Mapping[str, list[str]], parse: Callable[[str], Any]) -> Override:
    """Judge one word; `choices` is group -> names, `parse` turns `KEY=VALUE` into a Python value.

    `parse` raises MalformedError or ManyValuesError.
    """
    key, equals, text = word.lstrip("+~").partition("=")
    sign = word[: len(word) - len(word.lstrip("+~"))]
    if not (equals or sign):
        return _judge_without_value(word, choices)
    if problem := key_problem(key, tuple(choices)):
        return Override(key, problem=problem)
    if sign:
        return _judge_signed(sign, key, equals, text, parse)
    if key in choices:
        return _judge_choice(key, text, choices[key])
    if _takes_text(key) and not text.startswith(("'", '"')) and text.lower() != "null":
        return Override(key, hydra=f"{key}={_quoted(text)}")
    return _judge_value(key, text, parse)


def _judge_signed(sign: str, key: str, equals: str, text: str, parse: Callable[[str], Any]) -> Override:
    if not free_form_root(key):
        way_out = f"write {key}={text}" if equals else f"leave {key} out or give it a value"
        problem = f"{sign}{key} adds or removes a key, which only parallel.ds_config allows; {way_out}"
        return Override(key, problem=problem)
    if sign == "~" and not equals:
        return Override(key, hydra=f"~{key}")
    if sign in ("+", "++") and equals:
        return _judge_value(key, text, parse)
    return Override(key, problem=f"{sign}{key}{equals}{text} is not an override; use +{key}=VALUE or ~{key}")


def _judge_without_value(word: str, choices: Mapping[str, list[str]]) -> Override:
    if word.startswith("-"):
        return Override(word, problem=f"{word} is not an option; --help names them, overrides are KEY=VALUE")
    if word in key_types() or word in choices:
        return Override(word, problem=f"{word} has no value; write {word}=VALUE")
    if word in choices.get("experiment", []):
        return Override(word, problem=f"{word} is not an override; did you mean experiment={word}?")
    return Override(word, problem=f"{word!r} is not an override; write KEY=VALUE, as in train.steps=100")


def _judge_choice(group: str, text: str, names: list[str]) -> Override:
    if text in names or (group == "experiment" and text == NO_EXPERIMENT):
        return Override(group, hydra=f"{group}={text}")
    return Override(group, problem=not_known(f"{group}={text}", text, names))


def _judge_value(key: str, text: str, parse: Callable[[str], Any]) -> Override:
    annotation = key_types().get(key, Any)
    is_free_form = bool(free_form_root(key)) or typing.get_origin(annotation) is dict
    sign = "++" if is_free_form else ""  # Hydra's word for: add it or change it
    try:
        value = parse(f"{key}={text}")
    except MalformedError as error:
        if annotation is Any and not text.startswith(("[", "{", "'", '"')):
            return Override(key, hydra=f"{sign}{key}={_quoted(text)}")
        return Override(key, problem=f"{key}={text} can't be read ({error}); quote it, as in \"{key}='...'\"")
    except ManyValuesError:
        return Override(key, problem=_many_values_problem(key, text, annotation))
    problem = value_problem(key, text, value, annotation)
    return Override(key, problem=problem) if problem else Override(key, hydra=f"{sign}{key}={text}")


def _many_values_problem(key: str, text: str, annotation: Any) -> str:
    if annotation is Any or typing.get_origin(annotation) is list:
        return f"{key}={text} is not one value; write a list in brackets: '{key}=[{text}]'"
    return f"{key}={text} names several values, a run takes one; phalanx sweep makes a run of each"


def _takes_text(key: str) -> bool:
    return split_optional(key_types().get(key, Any))[0] is str


def _quoted(text: str) -> str:
    """In Hydra's single quotes, where a backslash counts only before a quote: `it's` -> `'it\\'s'`."""
    escaped = re.sub(r"(\\*)('|$)", lambda match: match[1] * 2 + ("\\'" if match[2] else ""), text)
    return f"'{escaped}'"

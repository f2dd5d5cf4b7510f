"""A search space as values: dimensions that list their values and such that are an interval. Plan half.

A value is the text of an override: what a person would type after `KEY=`. So a trial's parameters can be copied to
a command line, compared and hashed.
"""

import math
from dataclasses import dataclass
from itertools import product

Parameters = dict[str, str]
"""Dotted key or group -> the override's text."""
DIGITS = 6
"""Suggested numbers are rounded to so many digits, so that people can copy them."""


@dataclass(frozen=True, slots=True)
class Choices:
    key: str
    values: tuple[str, ...]
    """In the order in which they are tried; no text twice."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from `low` to `high`, both included."""

    key: str
    low: float
    high: float
    is_log: bool = False
    is_integer: bool = False


Dimension = Choices | Interval
Space = tuple[Dimension, ...]


def space_problems(space: Space) -> list[str]:
    """One sentence for each dimension that can't be searched."""
    found = []
    for dimension in space:
        match dimension:
            case Choices(key, values) if not values:
                found.append(f"{key} has no value to try; list some, as in {key}=1,2")
            case Interval(key, low, high) if not low < high:
                found.append(f"{key}=interval({low:g},{high:g}) is empty; give the smaller end first")
            case Interval(key, low, high, is_log=True) if low <= 0:
                found.append(
                    f"{key}=tag(log,interval({low:g},{high:g})) starts at {low:g}, which has no logarithm; "
                    "start above 0 or leave out tag(log, ...)"
                )
    return found


def is_listed(space: Space) -> bool:
    """Whether every dimension lists its values, so that a grid can be made."""
    return all(isinstance(dimension, Choices) for dimension in space)


def grid_size(space: Space) -> int:
    return math.prod(len(dimension.values) for dimension in space if isinstance(dimension, Choices))


def grid(space: Space) -> list[Parameters]:
    """Every combination; the last dimension changes fastest, as in Hydra's own sweeps."""
    listed = [dimension for dimension in space if isinstance(dimension, Choices)]
    combinations = product(*(dimension.values for dimension in listed))
    return [dict(zip((d.key for d in listed), values, strict=True)) for values in combinations]


def ends(space: Space) -> list[Parameters]:
    """Combinations that judge a space without an end: each value or end once, the other dimensions at their first."""
    texts = {dimension.key: extremes(dimension) for dimension in space}
    first = {key: values[0] for key, values in texts.items()}
    found = [first]
    found += [{**first, key: value} for key, values in texts.items() for value in values[1:]]
    return found


def extremes(dimension: Dimension) -> list[str]:
    """All values of a list, both ends of an interval."""
    if isinstance(dimension, Choices):
        return list(dimension.values)
    return [number_text(end, is_integer=dimension.is_integer) for end in (dimension.low, dimension.high)]


def number_text(value: float, *, is_integer: bool) -> str:
    """`0.000316228`, `64`: rounded to 6 digits."""
    if is_integer:
        return str(round(value))
    return repr(float(f"{value:.{DIGITS}g}"))


def contains(dimension: Dimension, text: str) -> bool:
    """Whether a dimension, which may have changed since, can still give this value."""
    if isinstance(dimension, Choices):
        return text in dimension.values
    number = as_number(text)
    return number is not None and dimension.low <= number <= dimension.high


def as_number(text: str) -> float | None:
    """A finite number, else None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def parameter_words(parameters: Parameters) -> list[str]:
    """`optim.lr=0.001`, one for each parameter, as one would type them."""
    return [f"{key}={value}" for key, value in parameters.items()]


def dimension_text(dimension: Dimension) -> str:
    """As in Hydra's grammar: `tag(log,interval(0.0001,0.01))`, `choice(8,16)`."""
    if isinstance(dimension, Choices):
        return f"choice({','.join(dimension.values)})"
    low, high = extremes(dimension)
    text = f"interval({low},{high})"
    text = f"int({text})" if dimension.is_integer else text
    return f"tag(log,{text})" if dimension.is_log else text

"""Progress of what is done item by item before anything starts: on standard error, which has no answers."""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")
FEWEST_SHOWN = 100
"""Fewer take about a second."""
_PLAIN_LINES = 10


def counted(what: str, items: Sequence[T]) -> Iterator[T]:
    """The items, one by one: a bar on a terminal, elsewhere a line every tenth, which begins with `what`."""
    if len(items) < FEWEST_SHOWN:
        yield from items
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":  # where rich shows nothing
        from rich.console import Console
        from rich.progress import track

        yield from track(items, what, console=Console(file=sys.stderr), transient=True)
    else:
        for done, item in enumerate(items):
            tenths = _PLAIN_LINES * done // len(items)
            if tenths > _PLAIN_LINES * (done - 1) // len(items) and done:
                print(f"{what}: {done:,} of {len(items):,}", file=sys.stderr, flush=True)
            yield item

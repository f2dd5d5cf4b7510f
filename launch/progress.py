"""How far long work is: a bar on a terminal, a line every tenth elsewhere."""

import sys
from collections.abc import Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn, track

T = TypeVar("T")
FEWEST_SHOWN = 100
"""Fewer trials are composed in about a second."""
_PLAIN_LINES = 10
"""Lines of progress where there is no terminal to draw on."""


def counted(what: str, items: Sequence[T]) -> Iterator[T]:
    """The items, one by one; where they are many their progress is told on standard error, which has no answers."""
    console = Console(file=sys.stderr, force_terminal=sys.stderr.isatty())
    if len(items) < FEWEST_SHOWN:
        yield from items
    elif _is_drawn_on(console):
        yield from track(items, what, console=console, transient=True)
    else:
        for done, item in enumerate(items):
            if done and _tenths(done, len(items)) > _tenths(done - 1, len(items)):
                print(f"{what}: {done:,} of {len(items):,}", file=sys.stderr, flush=True)
            yield item


def _is_drawn_on(console: Console) -> bool:
    """On a dumb terminal rich shows nothing."""
    return console.is_terminal and not console.is_dumb_terminal


def _tenths(done: int, total: int) -> int:
    return _PLAIN_LINES * done // max(1, total)


def plain_console() -> Console:
    """Prints paths as they are: no [markup], and `:100:` is a line's number, not an emoji."""
    return Console(highlight=False, markup=False, emoji=False)


class ProgressView:
    """Shows `what` is being done; `columns` stand between a bar and the counts in words."""

    def __init__(self, console: Console, what: str, *columns: ProgressColumn) -> None:
        self._console = console
        self._what = what
        self._lines_shown = 0
        self._is_drawn = _is_drawn_on(console)
        self._bar = Progress(
            TextColumn(what),
            BarColumn(),
            *columns,
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not self._is_drawn,
        )
        self._task = self._bar.add_task("", total=None, counts="", visible=False)

    def __enter__(self) -> "ProgressView":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, done: int, total: int, counts: str) -> None:
        self._bar.update(self._task, completed=done, total=total, counts=counts, visible=True)
        tenths = _tenths(done, total)
        if not self._is_drawn and tenths > self._lines_shown:
            self._lines_shown = tenths
            self._console.print(f"{self._what}: {100 * tenths // _PLAIN_LINES}%, {counts}", soft_wrap=True)

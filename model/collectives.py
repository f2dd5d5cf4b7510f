"""Telling somebody about every collective that DeepSpeed calls: when it is entered and when it is left."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

Around = Callable[[], AbstractContextManager[None]]
"""Makes what is entered with a collective and left with it."""
COLLECTIVES = (
    "all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast",
    "broadcast_object_list", "all_gather", "all_gather_into_tensor", "all_gather_base", "all_gather_coalesced",
    "all_gather_object", "all_to_all_single", "all_to_all", "gather", "scatter", "barrier", "monitored_barrier",
)  # fmt: skip
"""Of DeepSpeed's backend; point-to-point calls are no collectives."""


def observe_collectives(backend: Any, around: Around) -> None:
    """From here on `backend` (DeepSpeed's, one per process) calls its collectives inside `around()`."""
    for name in COLLECTIVES:
        if hasattr(backend, name):
            setattr(backend, name, _observed(getattr(backend, name), around))


def _observed(call: Callable[..., Any], around: Around) -> Callable[..., Any]:
    @functools.wraps(call)
    def observed(*arguments: Any, **named: Any) -> Any:
        with around():
            work = call(*arguments, **named)
        return work if work is None or not hasattr(work, "wait") else _ObservedWork(work, around)

    return observed


class _ObservedWork:
    """The handle of a collective under way: waiting for it is a part of it."""

    def __init__(self, work: Any, around: Around) -> None:
        self._work = work
        self._around = around

    def wait(self, *arguments: Any) -> Any:
        with self._around():
            return self._work.wait(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)

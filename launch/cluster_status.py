"""What `status` of either kind of cluster prints."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator.observe.aligned import aligned

Row = dict[str, Any]
Words = tuple[str, Sequence[Sequence[str]]]
"""A cluster's own line, and the cells of each of its hosts."""


def print_clusters(clusters: Sequence[Row], words: Callable[[Row], Words], *, as_json: bool, if_none: str) -> None:
    """A list of objects for programs; for people each cluster in its `words`, or `if_none`."""
    if as_json:
        print(json.dumps(clusters, indent=2))
    elif not clusters:
        print(if_none)
    for title, hosts in () if as_json else map(words, clusters):
        print("\n  ".join([title, *aligned(hosts)]))

"""Ray's placement groups: a run's reservations, one for each of its nodes.

In one group of many bundles a lost node's bundle moves only once Ray has found out by itself (a minute, by its
defaults), and several lost ones come back only together. A group for each node can be given up and asked for anew.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import PlacementError
from orchestrator.fleet.raylib import available_resources, import_ray
from orchestrator.spec import Bundle, Placement

SHORT_WAIT_S = 2.0
LOOK_S = 0.5
NODE_ID = "ray.io/node-id"
"""A label that Ray gives to every node."""


@dataclass(frozen=True, slots=True)
class Reservation:
    """One node's, asked for or granted."""

    group: Any
    name: str
    excluded: frozenset[str] = frozenset()
    """Ray's ids of the nodes that it must not be on."""

    def ray_node(self) -> str | None:
        """Ray's id of the node that it is on; None while there is none. Where a node has died and Ray has noticed,
        Ray looks for another one by itself."""
        row = import_ray().util.placement_group_table(self.group)
        return next(iter(row["bundles_to_node_id"].values()), None) if row["state"] == "CREATED" else None

    def is_removed(self) -> bool:
        """Whether somebody gave it up: an agent whom no driver's word reached takes its run's reservations along."""
        return bool(import_ray().util.placement_group_table(self.group)["state"] == "REMOVED")

    def wait(self, timeout_s: float) -> bool:
        """Whether it is granted within so long."""
        try:
            return bool(self.group.wait(timeout_seconds=max(0.01, timeout_s)))
        except Exception:  # Ray's word for one that was removed
            if self.is_removed():
                return False
            raise

    def give_up(self) -> None:
        with contextlib.suppress(Exception):
            import_ray().util.remove_placement_group(self.group)


def resources(bundle: Bundle) -> dict[str, float]:
    return {"CPU": bundle.cpus, **({"GPU": bundle.gpus} if bundle.gpus else {})}


def ask_for(bundle: Bundle, name: str, *, excluded: Collection[str] = (), only: str | None = None) -> Reservation:
    """Ask for a node's reservation, which outlives this process; returns at once."""
    group = import_ray().util.placement_group(
        [resources(bundle)], name=name, lifetime="detached", bundle_label_selector=_selectors(1, excluded, only)
    )
    return Reservation(group, name, frozenset(excluded))


def ask_for_all(
    placement: Placement,
    make_name: Callable[[], str],
    limit_s: float,
    excluded: Collection[str] = (),
    has_notice: Callable[[], bool] = lambda: False,
) -> list[Reservation]:
    """A reservation for each of the placement's bundles, on different nodes: all of them or none.

    Where the nodes are not free, they are waited for by a group that does not outlive this process: nobody would take
    back what is granted after our death. Raises PlacementError after `limit_s`, or once `has_notice`.
    """
    until_s = time.monotonic() + limit_s
    places = rooms_for(placement.bundles, available_resources(), excluded)
    while True:
        places = places or _wait_for_room(placement, limit_s, until_s, excluded, has_notice)
        made = [
            ask_for(bundle, make_name(), excluded=excluded, only=place)
            for bundle, place in zip(placement.bundles, places, strict=True)
        ]
        if all(reservation.wait(SHORT_WAIT_S) for reservation in made):
            return made
        for reservation in made:  # somebody else was faster
            reservation.give_up()
        places = None


def rooms_for(
    bundles: Sequence[Bundle], available: Mapping[str, Mapping[str, float]], excluded: Collection[str] = ()
) -> list[str] | None:
    """For each bundle a node of its own that has room, in the order of `available`; None where that does not work out
    so simply. `available`: node -> resource -> amount."""
    free = {node: has for node, has in available.items() if node not in excluded}
    chosen = []
    for bundle in bundles:
        wanted = resources(bundle)
        fits = (node for node, has in free.items() if all(has.get(name, 0.0) >= wanted[name] for name in wanted))
        node = next(fits, None)
        if node is None:
            return None
        chosen.append(node)
        del free[node]
    return chosen


def _wait_for_room(
    placement: Placement, limit_s: float, until_s: float, excluded: Collection[str], has_notice: Callable[[], bool]
) -> list[str]:
    util = import_ray().util
    bundles = [resources(bundle) for bundle in placement.bundles]
    group = util.placement_group(
        bundles,
        strategy="STRICT_SPREAD" if len(bundles) > 1 else "STRICT_PACK",
        bundle_label_selector=_selectors(len(bundles), excluded),
    )
    try:
        while not group.wait(timeout_seconds=min(LOOK_S, max(0.1, until_s - time.monotonic()))):
            if has_notice() or time.monotonic() >= until_s:
                raise PlacementError(not_freed(placement.bundles, limit_s))
        nodes = util.placement_group_table(group)["bundles_to_node_id"]
        return [nodes[number] for number in sorted(nodes)]
    finally:
        util.remove_placement_group(group)


def not_freed(bundles: Sequence[Bundle], wait_s: float) -> str:
    wanted = ", ".join(f"{bundle.cpus} CPUs and {bundle.gpus} GPUs" for bundle in bundles)
    return (
        f"the cluster has not freed nodes with {wanted} in cluster.start_timeout_s={wait_s:g}; "
        "wait for other jobs, ask for less, or raise the limit"
    )


def _selectors(count: int, excluded: Collection[str], only: str | None = None) -> list[dict[str, str]] | None:
    if only is not None:
        return [{NODE_ID: only}] * count
    return [{NODE_ID: f"!in({','.join(sorted(excluded))})"}] * count if excluded else None

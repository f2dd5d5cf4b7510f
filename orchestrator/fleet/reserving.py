"""Ray's placement groups: a run's reservation, a bundle for each node."""

from typing import Any

from orchestrator.errors import PlacementError
from orchestrator.fleet.raylib import import_ray
from orchestrator.spec import Bundle, Placement


def resources(bundle: Bundle) -> dict[str, float]:
    return {"CPU": bundle.cpus, **({"GPU": bundle.gpus} if bundle.gpus else {})}


def is_whole(group: Any) -> bool:
    """Whether every bundle has a node that lives, as far as Ray knows. It looks for others where one has died."""
    return bool(import_ray().util.placement_group_table(group)["state"] == "CREATED")


def wait_for(group: Any, placement: Placement, wait_s: float, left_s: float) -> None:
    """Until it is whole. Raises PlacementError after `left_s`, the rest of `wait_s`."""
    if not group.wait(timeout_seconds=left_s):
        wanted = ", ".join(f"{bundle.cpus} CPUs and {bundle.gpus} GPUs" for bundle in placement.bundles)
        raise PlacementError(
            f"the cluster has not freed nodes with {wanted} in cluster.start_timeout_s={wait_s:g}; "
            "wait for other jobs, ask for less, or raise the limit"
        )

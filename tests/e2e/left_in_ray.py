"""python left_in_ray.py [NAME]: what the Ray at $RAY_ADDRESS has of the run whose agents are called so, or of all, as
JSON."""

import json
import sys

import ray

from orchestrator.leaving import leave_with


def main() -> int:
    ray.init(log_to_driver=False, logging_level="ERROR", namespace="phalanx")
    prefix = f"{sys.argv[1]}/" if len(sys.argv) > 1 else ""
    agents = [agent for agent in ray.util.list_named_actors() if agent.startswith(prefix)]
    rows = ray.util.placement_group_table().values()
    groups = [row for row in rows if row["name"].startswith(prefix) and row["state"] != "REMOVED"]
    print(json.dumps({"agents": len(agents), "groups": len(groups)}))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    leave_with(main)

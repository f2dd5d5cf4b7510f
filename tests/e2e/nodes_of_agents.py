"""python nodes_of_agents.py NAME: Ray's id of the node of each of a run's agents, which are called so, as JSON."""

import json
import sys

import ray
from ray._private.state import state

from orchestrator.leaving import leave_with


def main() -> int:
    ray.init(log_to_driver=False, logging_level="ERROR", namespace="phalanx")
    actors = sorted(state.actor_table(None).values(), key=lambda actor: actor["Name"])
    ours = [actor for actor in actors if actor["Name"].startswith(f"{sys.argv[1]}/") and actor["State"] == "ALIVE"]
    print(json.dumps([actor["Address"]["NodeID"] for actor in ours]))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    leave_with(main)

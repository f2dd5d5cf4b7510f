"""python removed_reservation.py: what becomes of a reservation in the Ray at $RAY_ADDRESS that somebody else removes,
as JSON."""

import json

import ray

from orchestrator.fleet.reserving import ask_for
from orchestrator.leaving import leave_with
from orchestrator.spec import Bundle


def main() -> int:
    ray.init(log_to_driver=False, logging_level="ERROR", namespace="phalanx")
    reservation = ask_for(Bundle(workers=1, cpus=1, gpus=0), "removed")
    before = {"granted": reservation.wait(60.0), "removed": reservation.is_removed()}
    ray.util.remove_placement_group(ray.util.get_placement_group("removed"))
    after = {"granted": reservation.wait(60.0), "removed": reservation.is_removed()}
    print(json.dumps([before, after]))
    ray.shutdown()
    return 0


if __name__ == "__main__":
    leave_with(main)

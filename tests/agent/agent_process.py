"""An agent in a process of its own, to be killed; says "running" once its ranks train, then waits."""

import json
import sys
from pathlib import Path

from rank.ranks import Data, Ranks, open_run

from orchestrator.data.shards import read_manifest

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    data = Data(Path(settings["data"]), read_manifest(settings["data"]))
    run = open_run(data, Path(settings["root"]), "train.steps=1000000", "cluster.num_workers=2")
    with Ranks(data) as ranks, ranks.start(run) as live:
        live.hear_until(lambda heard: len(heard.rows) > 2)
        print("running", flush=True)
        sys.stdin.read()

"""What a zygote imports, then a rank's engine and two steps; says which modules the rank still had to import."""

import json
import sys
from pathlib import Path

from rank.ranks import ADDRESS, Data, open_run
from torch import distributed as dist

from model.engine import prewarm
from orchestrator.agent import rendezvous  # noqa: F401
from orchestrator.control.specs import worker_specs
from orchestrator.data.batches import read_step
from orchestrator.data.order import eval_rows_at
from orchestrator.data.shards import TokenReader, read_manifest
from orchestrator.placement import place, planned_nodes
from orchestrator.rank import worker
from orchestrator.rank.progress import Progress, create_page
from orchestrator.rank.stopwatch import Stopwatch
from orchestrator.spec import ResumePoint

if __name__ == "__main__":
    path, root, *words = sys.argv[1:]
    data = Data(Path(path), read_manifest(path))
    run = open_run(data, Path(root), *words)
    nodes = planned_nodes(run.config.cluster, device="cpu")
    placement = place(num_workers=1, workers_per_node=1, cpus_per_worker=1, gpus_per_worker=0, nodes=nodes)
    store = dist.TCPStore(ADDRESS, 0, is_master=True)
    (spec,) = worker_specs(
        run.config,
        run.plan,
        run.manifest,
        placement,
        attempt=1,
        resume=ResumePoint(),
        checkpoint_url=run.checkpoint_url,
        store_host=ADDRESS,
        store_port=store.port,
        interfaces=[None],
    )
    reader = TokenReader(path, data.manifest, "train", spec.batch.seq_len)
    batch = read_step(reader, eval_rows_at(0, 8, spec.batch), 0)
    prewarm()
    before = set(sys.modules)
    engine = worker.open_engine(spec, Progress(create_page("progress")), Stopwatch(), "attempt")
    for step in range(2):
        engine.train_step(step, batch.micro, 1e-3, lambda loss_sum: None)
    print(json.dumps(sorted(set(sys.modules) - before)), flush=True)

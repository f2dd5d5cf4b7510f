"""One rank of the peer: the same engine, rows and DeepSpeed settings under bare torchrun, and nothing else.

Started by torchrun as `bare_worker.py SPECS.json FOLDER`; writes to FOLDER/rank_N.jsonl, after each step, when it
was done (unix seconds), the rank's loss sum, its part of the batch digest, its process id and how often torchrun has
restarted it. A restart begins with the first step again: it keeps no checkpoint, so it never waits for one.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from torch import distributed as dist

from model.engine import Engine
from model.schedule import learning_rate
from orchestrator.codec import decode
from orchestrator.data.batches import BatchLoader
from orchestrator.data.order import GlobalOrder
from orchestrator.data.shards import TokenReader
from orchestrator.rank.worker import engine_settings
from orchestrator.spec import WorkerSpec


def main(specs: Path, folder: Path) -> None:
    rank = int(os.environ["RANK"])
    spec = decode(WorkerSpec, json.loads(specs.read_text())[rank])
    prepare(spec)
    dist.init_process_group(backend_of(spec))
    train(spec, folder, restarts=int(os.environ["TORCHELASTIC_RESTART_COUNT"]))


def prepare(spec: WorkerSpec) -> None:
    """The engine is spared what our own ranks are spared: a build of 30 s for inference's collective."""
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    torch.set_num_threads(spec.threads)
    if spec.device == "cuda":
        torch.cuda.set_device(spec.local_rank)


def backend_of(spec: WorkerSpec) -> str:
    return "nccl" if spec.device == "cuda" else "gloo"


def train(spec: WorkerSpec, folder: Path, *, restarts: int) -> None:
    """From the first step to the last, in a process group that is there already."""
    rank = dist.get_rank()
    deepspeed.init_distributed(backend_of(spec), auto_mpi_discovery=False, verbose=False)
    engine = Engine(engine_settings(spec), is_restored=False)
    reader = TokenReader(str(spec.data.path), spec.manifest, "train", spec.batch.seq_len)
    order = GlobalOrder(num_rows=reader.num_rows, seed=spec.seed)
    facts: dict[str, Any] = {"pid": os.getpid(), "restarts": restarts}
    with (
        BatchLoader(reader, order, spec.batch, rank, prefetch=spec.data.prefetch_batches) as loader,
        (folder / f"rank_{rank}.jsonl").open("a", buffering=1) as rows,
    ):
        for step in range(spec.steps):
            batch = loader.next()
            result = engine.train_step(step, batch.micro, _lr(spec, step), lambda loss_sum: None)
            row = {"time": time.time(), "loss_sum": result.loss_sum, "digest": batch.digest, **facts}
            rows.write(json.dumps(row) + "\n")
    dist.destroy_process_group()


def _lr(spec: WorkerSpec, step: int) -> float:
    optim = spec.optim
    return learning_rate(
        step,
        schedule=optim.schedule.value,
        lr=optim.lr,
        warmup_steps=optim.warmup_steps,
        schedule_steps=spec.schedule_steps,
        min_lr_ratio=optim.min_lr_ratio,
        decay_fraction=optim.decay_fraction,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

"""What one rank does from its WorkerSpec to its exit. Runs in a process forked from the zygote.

Exit codes: 0 done (or drained), 1 failed; a failure is also told to the agent, with its traceback, before exit.
"""

import contextlib
import os
import random
import socket
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.engine import Engine, EngineSettings, Fetch, join_process_group
from model.optimizer import OptimizerSettings
from orchestrator.agent.channel import Channel, Message
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.slots import SnapshotDamagedError
from orchestrator.codec import decode
from orchestrator.rank.gpuhealth import GpuHealth
from orchestrator.rank.inbox import Inbox
from orchestrator.rank.loop import Loop
from orchestrator.rank.progress import Progress
from orchestrator.rank.rangereads import open_spread
from orchestrator.rank.snapshots import Snapshots
from orchestrator.rank.stopwatch import Stopwatch
from orchestrator.spec import WorkerSpec

RANK_OOM_SCORE_ADJ = 500
"""Ranks go first under memory pressure, never the agent that holds what they need to recover."""


def run_worker(channel: Channel) -> int:
    stopwatch = Stopwatch()
    message = receive_spec(channel)
    (page,) = channel.receive_descriptors(message)
    spec, progress = decode(WorkerSpec, message["spec"]), Progress(page)
    inbox = Inbox(channel)
    try:
        if message["is_standby"]:
            engine = open_engine(spec, progress, stopwatch, "standby")
            called = stand_by(spec, engine, channel)
            if called is None:
                return 0
            spec, stopwatch = called, Stopwatch()
            say_start(spec)
        else:
            say_start(spec)
            engine = open_engine(spec, progress, stopwatch, "attempt")
        snapshots = Snapshots(spec, engine, channel, inbox)
        recent_losses = restore(spec, engine, snapshots)
        stopwatch.lap("restore")
        snapshots.prepare()
        parts = {"progress": progress, "stopwatch": stopwatch, "recent_losses": recent_losses}
        parts["gpu"] = open_gpu_health(spec)
        Loop(spec, engine, channel, inbox, snapshots, **parts).run()
    except SnapshotDamagedError as error:
        is_own = spec.resume.world_size in (None, spec.world_size)
        what = {"kind": "snapshot_rejected", "step": spec.resume.step, "message": str(error), "is_own": is_own}
        channel.send(what)
        channel.send(failure_message(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        with contextlib.suppress(OSError):
            channel.send(failure_message(error))
        return 1
    return 0


def open_engine(spec: WorkerSpec, progress: Progress, stopwatch: Stopwatch, group: str) -> Engine:
    """Join the process group of this name and the attempt's number, and build this rank's engine, with initial
    weights if it starts from them."""
    _prepare_process(spec)
    stopwatch.lap("prepare")
    join_process_group(
        device=spec.device,
        store_host=spec.store_host,
        store_port=spec.store_port,
        prefix=f"{group}_{spec.attempt}",
        rank=spec.rank,
        world_size=spec.world_size,
        timeout_s=spec.fault.collective_timeout_s,
        around_collectives=progress.collective,
    )
    stopwatch.lap("join")
    engine = Engine(engine_settings(spec), is_restored=spec.resume.source != "start")
    stopwatch.lap("engine")
    return engine


def open_gpu_health(spec: WorkerSpec) -> GpuHealth | None:
    """None on a CPU, and where NVML is not there."""
    if spec.device != "cuda":
        return None
    uuid = str(torch.cuda.get_device_properties(spec.local_rank).uuid)
    return GpuHealth.open(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")


def receive_spec(channel: Channel) -> Message:
    """What a rank is told first. Ends of an earlier attempt's transfers may come before it: they are of no concern,
    because which slots are still held is asked later."""
    while (message := channel.receive()).get("kind") in ("persisted", "replicated"):
        pass
    return message


def stand_by(spec: WorkerSpec, engine: Engine, channel: Channel) -> WorkerSpec | None:
    """Be ready for an attempt, and wait for it; None where the agent goes without one."""
    engine.rehearse(spec.batch.micro_batch_size, spec.batch.seq_len)
    channel.send({"kind": "standing_by"})
    try:
        called = decode(WorkerSpec, receive_spec(channel)["spec"])
    except (EOFError, OSError):
        return None
    seed_generators(called.seed)
    return called


def say_start(spec: WorkerSpec) -> None:
    place = f"rank {spec.rank} of {spec.world_size} on {socket.gethostname()}"
    print(f"{place}: attempt {spec.attempt}, pid {os.getpid()}", flush=True)


def failure_message(error: Exception) -> dict[str, Any]:
    return {
        "kind": "failed",
        "message": f"{type(error).__name__}: {error}",
        "trace": traceback.format_exc()[-8000:],
    }


def _prepare_process(spec: WorkerSpec) -> None:
    """Environment and seeds; DeepSpeed reads these variables and tries MPI without LOCAL_RANK."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(RANK_OOM_SCORE_ADJ))
    os.environ.update(
        RANK=str(spec.rank),
        LOCAL_RANK=str(spec.local_rank),
        WORLD_SIZE=str(spec.world_size),
        LOCAL_WORLD_SIZE=str(spec.local_size),
        LOCAL_SIZE=str(spec.local_size),
        MASTER_ADDR=spec.store_host,
        MASTER_PORT=str(spec.store_port),
    )
    if spec.network_interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", spec.network_interface)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", spec.network_interface)
    torch.set_num_threads(spec.threads)
    seed_generators(spec.seed)
    if spec.device == "cuda":
        torch.cuda.set_device(spec.local_rank)


def seed_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def engine_settings(spec: WorkerSpec) -> EngineSettings:
    optim = spec.optim
    return EngineSettings(
        model=spec.model,
        optimizer=OptimizerSettings(
            name=optim.name.value,
            lr=optim.lr,
            betas=(optim.betas[0], optim.betas[1]),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            momentum=optim.momentum,
        ),
        ds_config=spec.ds_config,
        zero_stage=spec.zero_stage,
        device=f"cuda:{spec.local_rank}" if spec.device == "cuda" else "cpu",
        seed=spec.seed,
        tokens_per_step=spec.batch.tokens_per_step,
        activation_checkpointing=spec.activation_checkpointing,
        eos_token_id=spec.manifest.tokenizer.eos_token_id if spec.data.isolate_documents else None,
    )


def restore(spec: WorkerSpec, engine: Engine, snapshots: Snapshots) -> Sequence[float]:
    """From this rank's slot, or by range reads of its share from a checkpoint that any world and stage wrote.

    Returns the losses that were kept with it.
    """
    if spec.resume.is_in_memory:
        snapshots.restore()
        return snapshots.recent_losses
    if spec.resume.checkpoint is not None:
        reader = open_checkpoint(spec, spec.resume.checkpoint)
        if spec.resume.is_initial:
            counters = updates_of(reader, engine.settings.optimizer.moments)
            engine.restore(zeros_where_absent(reader), spec.resume.step, counters)
        else:
            engine.restore(reader.read, spec.resume.step, reader.marker.optimizer)
            return reader.marker.recent_losses
    return ()


def open_checkpoint(spec: WorkerSpec, folder_url: str) -> CheckpointReader:
    if spec.resume.is_spread and spec.disk_folder is not None:
        return open_spread(spec.resume, spec.disk_folder, spec.peer_secret, spec.checkpoint.key_file)
    return CheckpointReader.open(folder_url, spec.checkpoint.key_file)


def updates_of(reader: CheckpointReader, moments: Sequence[str]) -> dict[str, Any]:
    """Of a starting point's counters, how many updates its moments have seen: none, where it lacks any of them."""
    if any(kind not in reader.kinds(name) for name in reader.shapes for kind in moments):
        return {"updates": 0}
    return {key: value for key, value in reader.marker.optimizer.items() if key in ("updates", "skipped_steps")}


def zeros_where_absent(reader: CheckpointReader) -> Fetch:
    """Reads a starting point: moments that it does not hold are those of a fresh optimizer."""

    def fetch(name: str, kind: str, start: int, count: int) -> np.ndarray:
        if kind != "master" and kind not in reader.kinds(name):
            return np.zeros(count, np.float32)
        return reader.read(name, kind, start, count)

    return fetch

"""One rank of the peers: the same engine under bare torchrun, saving its state by a library's own means.

Started by torchrun as `save_worker.py METHOD SPECS.json FOLDER EVERY`. Writes to FOLDER/rank_N.json what each save
cost the training thread, and one memcpy of the rank's state.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import deepspeed
import torch
from torch import distributed as dist
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from model.engine import Engine
from orchestrator.codec import decode
from orchestrator.data.batches import BatchLoader
from orchestrator.data.order import GlobalOrder
from orchestrator.data.shards import TokenReader
from orchestrator.rank.worker import engine_settings
from orchestrator.spec import WorkerSpec

MEMCPYS = 9
State = dict[str, torch.Tensor]
Save = Callable[[State, Path], None]
"""Returns when training may go on."""
Method = tuple[Save, Callable[[], None]]
"""And what waits for a save that is still under way."""


def main(method: str, specs: Path, folder: Path, every: int) -> None:
    rank = int(os.environ["RANK"])
    spec = decode(WorkerSpec, json.loads(specs.read_text())[rank])
    # The engine is spared what our own ranks are spared: a build of 30 s for inference's collective.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    torch.set_num_threads(spec.threads)
    dist.init_process_group("gloo")
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)
    engine = Engine(engine_settings(spec), is_restored=False)
    save, settle = METHODS[method](engine)
    saves_s = _train(spec, engine, save, settle, folder / "saves", every)
    settle()
    found = {"saves_s": saves_s, **_memcpy(_state(engine))}
    (folder / f"rank_{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _train(  # noqa: PLR0917 -- what, how, where, how often
    spec: WorkerSpec, engine: Engine, save: Save, settle: Callable[[], None], folder: Path, every: int
) -> list[float]:
    """How long each save has kept the training thread waiting, s."""
    reader = TokenReader(str(spec.data.path), spec.manifest, "train", spec.batch.seq_len)
    order = GlobalOrder(num_rows=reader.num_rows, seed=spec.seed)
    saves_s = []
    with BatchLoader(reader, order, spec.batch, spec.rank) as loader:
        for step in range(spec.steps):
            engine.train_step(step, loader.next().micro, spec.optim.lr, lambda loss_sum: None)
            if (step + 1) % every == 0:
                settle()  # a save still under way is not charged to this one
                dist.barrier()  # nor another rank's lateness
                begun = time.perf_counter()
                save(_state(engine), folder / f"step_{step}")
                saves_s.append(time.perf_counter() - begun)
    return saves_s


def _state(engine: Engine) -> State:
    """The rank's masters and moments, as they lie in the engine."""
    return {f"rank_{dist.get_rank()}.{i}": part.values for i, part in enumerate(engine.state_parts())}


def _memcpy(state: State) -> dict[str, Any]:
    """Into warm memory: the unit in which a stall is measured."""
    copies = {key: torch.empty_like(value) for key, value in state.items()}
    found = []
    for _ in range(MEMCPYS + 1):
        dist.barrier()
        begun = time.perf_counter()
        for key, value in state.items():
            copies[key].copy_(value)
        found.append(time.perf_counter() - begun)
    return {"memcpy_s": median(found[1:]), "state_bytes": sum(value.nbytes for value in state.values())}


def _nothing() -> None:
    pass


def _torch_save(_engine: Engine) -> Method:
    def save(state: State, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        torch.save(state, f"{path}_{dist.get_rank()}.pt")

    return save, _nothing


def _dcp_save(_engine: Engine) -> Method:
    def save(state: State, path: Path) -> None:
        dcp.save(dict(state), checkpoint_id=str(path))

    return save, _nothing


def _dcp_async(kind: AsyncCheckpointerType) -> Method:
    """At its best: staged into shared memory that is kept from save to save."""
    group = dist.new_group(backend="gloo")
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=True, use_async_staging=False, use_non_blocking_copy=False
    )
    stager = DefaultStager(options)
    under_way: list[Any] = []

    def save(state: State, path: Path) -> None:
        answer = dcp.async_save(
            dict(state),
            checkpoint_id=str(path),
            process_group=group,
            async_checkpointer_type=kind,
            async_stager=stager,
        )
        under_way.append(getattr(answer, "upload_completion", answer))

    def settle() -> None:
        while under_way:
            under_way.pop().result()

    return save, settle


def _deepspeed(engine: Engine) -> Method:
    def save(_state: State, path: Path) -> None:
        engine._engine.save_checkpoint(str(path.parent / "deepspeed"), tag=path.name)

    return save, _nothing


METHODS: dict[str, Callable[[Engine], Method]] = {
    "torch.save": _torch_save,
    "dcp.save": _dcp_save,
    "dcp.async_save, thread": lambda _: _dcp_async(AsyncCheckpointerType.THREAD),
    "dcp.async_save, process": lambda _: _dcp_async(AsyncCheckpointerType.PROCESS),
    "DeepSpeed": _deepspeed,
}

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))

"""How fast this node multiplies matrices, and sums with another one: a second of work, to compare nodes by."""

import os
import time
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed as dist

TRIALS = 5
TRIAL_S = 0.1
"""Longer than a moment of somebody else's work; the best trial counts."""
CPU_SIDE, GPU_SIDE = 512, 8192
"""Rows and columns of the factors."""
CPU_BYTES, GPU_BYTES = 8 * 2**20, 256 * 2**20
"""What two nodes sum."""
PAIR_TIMEOUT = timedelta(seconds=15)


class WrongSumError(RuntimeError):
    """An all-reduce that went through, with another result than it has to have."""


def matrix_flops_per_s(device: str) -> list[float]:
    """Of each GPU that is visible here, in bf16; on `cpu` one figure, in fp32 with all cores that we may use."""
    if device == "cuda":
        return [_matrix_rate(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    torch.set_num_threads(usable_cores())
    return [_matrix_rate(torch.device("cpu"))]


def usable_cores() -> int:
    allocated = int(os.environ.get("SLURM_CPUS_ON_NODE") or os.cpu_count() or 1)
    return max(1, min(allocated, len(os.sched_getaffinity(0))))


Store = dist.TCPStore


def own_store(address: str) -> Store:
    """Where another node meets this one, at a free port."""
    return dist.TCPStore(address, 0, is_master=True, wait_for_workers=False, timeout=PAIR_TIMEOUT)


def store_of(address: str, port: int) -> Store:
    """Raises RuntimeError where nothing answers there."""
    return dist.TCPStore(address, port, is_master=False, timeout=PAIR_TIMEOUT)


def pair_bytes_per_s(store: dist.Store, rank: int, *, device: str, turn: int) -> float:
    """Bytes that an all-reduce of this node and another one sums in a second: over gloo, or NCCL between GPUs.

    Both call it with the same `turn`, which also says which of their GPUs. Raises RuntimeError where none comes
    about.
    """
    is_gpu = device == "cuda"
    place = torch.device("cuda", turn % torch.cuda.device_count()) if is_gpu else torch.device("cpu")
    dist.init_process_group(
        "nccl" if is_gpu else "gloo",
        store=dist.PrefixStore(f"turn{turn}", store),
        rank=rank,
        world_size=2,
        timeout=PAIR_TIMEOUT,
        device_id=place if is_gpu else None,
    )
    try:
        summed = torch.ones((GPU_BYTES if is_gpu else CPU_BYTES) // 4, device=place)
        dist.all_reduce(summed[:1])  # they meet
        first_s = _seconds(lambda: dist.all_reduce(summed), place)
        slower_s = torch.tensor([first_s], device=place)
        dist.all_reduce(slower_s, dist.ReduceOp.MAX)
        trials = max(1, min(TRIALS, int(TRIALS * TRIAL_S / slower_s.item())))
        fastest_s = min(_seconds(lambda: dist.all_reduce(summed), place) for _ in range(trials))
        if not bool((summed[1:] == 2.0 ** (1 + trials)).all()):
            raise WrongSumError("the sum is wrong")
        return summed.nbytes / fastest_s
    finally:
        dist.destroy_process_group()


def _matrix_rate(place: torch.device) -> float:
    is_gpu = place.type == "cuda"
    side = GPU_SIDE if is_gpu else CPU_SIDE
    factor = torch.rand(side, side, device=place, dtype=torch.bfloat16 if is_gpu else torch.float32)
    product = torch.empty_like(factor)
    best = 0.0
    for trial in range(1 + TRIALS):  # the first warms up
        done, spent_s = 0, 0.0
        while spent_s < TRIAL_S:
            spent_s += _seconds(lambda: torch.mm(factor, factor, out=product), place)
            done += 1
        best = max(best, done * 2 * side**3 / spent_s if trial else 0.0)
    return best


def _seconds(work: Callable[[], object], place: torch.device) -> float:
    started_s = time.perf_counter()
    work()
    if place.type == "cuda":
        torch.cuda.synchronize(place)
    return time.perf_counter() - started_s

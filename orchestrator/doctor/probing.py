"""Measures what a rank reaches on this CPU: matrix products, memory, gloo. Some seconds.

Each number of threads is measured as ranks would run: as many processes at once as the cores hold. They are forked
from a process that has imported torch and computed nothing yet. The best of several turns counts: whatever else runs
here only makes a turn slower.
"""

import json
import multiprocessing
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from orchestrator.config import Precision
from orchestrator.probe import Probe, Rates

WIDTHS = (64, 256, 1024)
ROWS = 512
"""Of the product: the tokens of a small micro-batch."""
DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}
COPY_ELEMENTS = 16 << 20
LINK_ELEMENTS = 8 << 20
TURN_S = 0.05
TURNS = 3
FORK = multiprocessing.get_context("fork")


def probe_cpu(say: Callable[[str], None]) -> Probe:
    """Measure this host; `say` gets a line before each part. Errors: OSError where no process can be started."""
    cpus = len(os.sched_getaffinity(0))
    rates = []
    for threads in _thread_counts(cpus):
        count = max(1, cpus // threads)
        say(f"matrix products and copies: {count} x {threads} thread{'s' if threads > 1 else ''}")
        rates.append(_joint_rates(_together(_measure_rates, count, threads), threads))
    say("all-reduce of two processes over gloo")
    with tempfile.TemporaryDirectory() as folder:
        link = min(_together(_measure_link, 2, str(Path(folder) / "store")))
    return Probe(
        host=socket.gethostname(),
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        cpus=cpus,
        rates=rates,
        link_bytes_per_s=link,
    )


def _thread_counts(cpus: int) -> Iterator[int]:
    """Powers of two, and all of them."""
    threads = 1
    while threads < cpus:
        yield threads
        threads *= 2
    yield cpus


def _together(measure: Callable[[int, Any, Any], Any], count: int, argument: Any) -> list[Any]:
    """What `measure(rank, argument, barrier)` returns in each of `count` processes at once."""
    barrier = FORK.Barrier(count)
    started = []
    for rank in range(count):
        ours, theirs = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_answer, args=(theirs, measure, rank, argument, barrier), daemon=True)
        process.start()
        theirs.close()
        started.append((process, ours))
    try:
        return [_heard(process, pipe) for process, pipe in started]
    finally:
        for process, pipe in started:
            pipe.close()
            process.terminate()
            process.join()


def _heard(process: Any, pipe: Connection) -> Any:
    try:
        return json.loads(pipe.recv_bytes())
    except EOFError:
        process.join()
        raise OSError(f"a process of the probe died with exit code {process.exitcode}") from None


def _answer(
    pipe: Connection, measure: Callable[[int, Any, Any], Any], rank: int, argument: Any, barrier: Any
) -> None:
    pipe.send_bytes(json.dumps(measure(rank, argument, barrier)).encode())


def _measure_rates(_: int, threads: int, barrier: Any) -> dict[str, Any]:
    torch.set_num_threads(threads)
    products: dict[str, dict[int, float]] = {}
    for precision, dtype in DTYPES.items():
        products[precision.value] = {}
        for width in WIDTHS:
            left, right = torch.ones(ROWS, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
            out = torch.empty(ROWS, 4 * width, dtype=dtype)
            seconds = _best_s(lambda a=left, b=right, c=out: torch.mm(a, b, out=c), barrier)
            products[precision.value][width] = 2 * ROWS * width * 4 * width / seconds
    source, target = torch.ones(COPY_ELEMENTS), torch.empty(COPY_ELEMENTS)
    copy_s = _best_s(lambda: target.copy_(source), barrier)
    return {"products": products, "memory": 2 * source.nbytes / copy_s}


def _best_s(work: Callable[[], object], barrier: Any) -> float:
    """Seconds of one call in the best of TURNS turns, each begun by all processes together."""
    work()
    best = float("inf")
    for _ in range(TURNS):
        barrier.wait()
        started, calls = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - started) < TURN_S or calls == 0:
            work()
            calls += 1
        best = min(best, elapsed / calls)
    return best


def _joint_rates(found: list[dict[str, Any]], threads: int) -> Rates:
    """The slowest process's: a step waits for it."""
    products = {
        precision: {width: min(one["products"][precision.value][str(width)] for one in found) for width in WIDTHS}
        for precision in DTYPES
    }
    memory = min(one["memory"] for one in found)
    return Rates(threads=threads, matmul_flops_per_s=products, memory_bytes_per_s=memory)


def _measure_link(rank: int, store: str, barrier: Any) -> float:
    """Bytes a second of an all-reduce over the loopback."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    try:
        tensor = torch.ones(LINK_ELEMENTS)
        best = float("inf")
        dist.all_reduce(tensor)
        for _ in range(TURNS):
            barrier.wait()
            started = time.perf_counter()
            dist.all_reduce(tensor)
            best = min(best, time.perf_counter() - started)
        return tensor.nbytes / best
    finally:
        dist.destroy_process_group()

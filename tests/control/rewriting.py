"""Ranks that load a checkpoint, save it again before any step, and then go on.

A training run never saves what it has only just read, so these ranks are not an agent's: Python's fork server
imports DeepSpeed once and forks them. What they do in between is the worker's own code.
"""

import contextlib
import json
import multiprocessing
import os
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any

from ranks import SAFETY_S, Heard, Ranks

from orchestrator.codec import decode, encode
from orchestrator.control.opening import OpenRun
from orchestrator.spec import ResumePoint, WorkerSpec

_PRELOADED = [
    "orchestrator.control.worker",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch._dynamo",
    "torch._inductor.compile_fx",
]


def rewrite(ranks: Ranks, run: OpenRun, resume: ResumePoint) -> Heard:
    """Commits step `resume.step` in the run's own store, then trains to the run's last step."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    os.environ.update(DS_ACCELERATOR="cpu", DEEPSPEED_LOG_LEVEL="error")
    specs = ranks.specs(run, resume)
    heard = Heard(run, specs[0].attempt, resume)
    ends: dict[Connection, int] = {}
    processes = []
    try:
        for spec in specs:
            ours, theirs = context.Pipe()
            processes.append(context.Process(target=_be_rank, args=(encode(spec), theirs), daemon=True))
            processes[-1].start()
            theirs.close()
            ends[ours] = spec.rank
        for rank, message in _messages(ends):
            heard.hear({**message, "rank": rank, "attempt": heard.attempt})
        for process in processes:
            process.join(SAFETY_S)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()
        for end in ends:
            end.close()
    return heard


def _messages(ends: dict[Connection, int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What the ranks say, until each has closed its end."""
    living = set(ends)
    while living:
        ready = wait(living, SAFETY_S)
        assert ready, "the ranks have said nothing for minutes"
        for end in ready:
            with contextlib.suppress(EOFError):
                yield ends[end], json.loads(end.recv_bytes())
                continue
            living.discard(end)


def _be_rank(encoded: dict[str, Any], connection: Connection) -> None:
    from model.engine import prewarm
    from orchestrator.control.channel import Channel
    from orchestrator.control.loop import Loop
    from orchestrator.control.worker import open_engine

    prewarm()
    spec = decode(WorkerSpec, encoded)
    loop = Loop(spec, open_engine(spec), Channel(os.dup(connection.fileno())))
    loop.save(spec.resume.step)
    loop.run()

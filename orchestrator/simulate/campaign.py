"""Many schedules, over the machine's cores; each is the same whenever its seed is."""

import contextlib
import gc
import itertools
import mmap
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import numpy as np

from orchestrator.control.lifecycle import Decide, decide
from orchestrator.control.opening import OpenRun
from orchestrator.leash import die_with_parent
from orchestrator.runfolder import RunFolder
from orchestrator.scratch import scratch_folder, sweep_folders
from orchestrator.simulate.faults import UNINJECTED, Fault, Scenario, reported_interval_s
from orchestrator.simulate.outcome import Course
from orchestrator.simulate.saving import Payloads
from orchestrator.simulate.schedule import Schedule
from orchestrator.simulate.setting import Setting

CROWDED_FAULTS = 3.0
"""Of the reported mix, on average in one schedule of a few hours."""
CROWDED_UNINJECTED = 3
RESTARTS = (1, 3, 10)
"""Values of fault.max_restarts: small ones, so that runs use them up."""
DAY_S = 86_400.0
GC_THRESHOLDS = (20_000, 20, 20)
"""A schedule makes many objects and few cycles: looking for those as often as usual is a fifth of its time."""
HANDED_OUT = 4096
"""Seeds that the workers are given at a time: a signal is answered only after the last one was handed out."""
SCRATCH_PREFIX = "phalanx-simulate-"


class Rehearsals:
    """Short runs into which faults are crowded, so that few hours see what years bring."""

    def __init__(self, setting: Setting, decide: Decide = decide, kinds: tuple[Fault, ...] = UNINJECTED) -> None:
        """`kinds`: of what nobody injects, what is drawn from."""
        self._kinds = kinds
        self._setting = setting
        self._decide = decide
        self._payloads = Payloads(len(setting.placement.ranks))

    def run(self, seed: int) -> Course:
        """One to four hours with faults, checkpoints and a budget, all drawn from `seed`."""
        rng = np.random.default_rng([seed, 1])
        hours = float(rng.uniform(1, 4))
        steps = max(10, int(hours * 3600 / self._setting.costs.step_s))
        setting = self._setting.with_steps(steps, save_every=max(1, steps // int(rng.integers(2, 7))))
        setting = setting.with_restarts(int(rng.choice(RESTARTS)))
        interval_s = hours * 3600 / CROWDED_FAULTS
        scenario = Scenario(
            steps=steps, hours=hours, interval_s=interval_s, uninjected=CROWDED_UNINJECTED, kinds=self._kinds
        )
        return course(setting, scenario, seed, self._payloads, decide=self._decide)


def predict(
    setting: Setting, *, days: float, seed: int, on_progress: Callable[[float], None] = lambda share: None
) -> Course:
    """One run of so many days of steps, with the faults that were reported, at the rate that follows for its GPUs."""
    sweep_folders(SCRATCH_PREFIX, scratch_parent())
    steps = max(10, int(days * DAY_S / setting.costs.step_s))
    scenario = Scenario(steps=steps, hours=days * 24, interval_s=reported_interval_s(setting.gpus), uninjected=0)
    payloads = Payloads(len(setting.placement.ranks))
    return course(setting.with_steps(steps), scenario, seed, payloads, on_progress=on_progress)


def course(
    setting: Setting,
    scenario: Scenario,
    seed: int,
    payloads: Payloads,
    *,
    decide: Decide = decide,
    on_progress: Callable[[float], None] = lambda share: None,
) -> Course:
    """One schedule in a folder of its own, which is taken away."""
    with scratch_folder(SCRATCH_PREFIX, scratch_parent()) as folder, rare_collections():
        path = folder / "run"
        path.mkdir()
        run = OpenRun(setting.config, setting.plan, setting.manifest, RunFolder(path), "simulated://store", False)
        how = {"scenario": scenario, "seed": seed, "decide": decide, "on_progress": on_progress}
        return Schedule(run, setting.placement, setting.costs, payloads, **how).run()


@contextlib.contextmanager
def rare_collections() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(*GC_THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def scratch_parent() -> str:
    """Memory where there is some: nothing of a schedule need survive."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"


def rehearse(setting: Setting, seeds: Iterable[int], processes: int | None = None) -> Iterator[Course]:
    """The courses of `seeds`, in their order, as they are done.

    SIGINT and SIGTERM are answered between two courses, by the handler that was there before.
    """
    sweep_folders(SCRATCH_PREFIX, scratch_parent())
    processes = processes or os.cpu_count() or 1
    rehearsals = Rehearsals(setting)
    if processes == 1:
        yield from map(rehearsals.run, seeds)
        return
    with _signals_put_off() as heard:
        fork = multiprocessing.get_context("fork")
        pool = ProcessPoolExecutor(processes, fork, initializer=_prepare, initargs=(rehearsals, os.getpid(), heard))
        try:
            remaining = iter(seeds)
            while handed_out := list(itertools.islice(remaining, HANDED_OUT)):
                for course in pool.map(_run, handed_out, chunksize=4):
                    if course is None:
                        return
                    yield course
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _signals_put_off() -> Iterator[mmap.mmap]:
    """Gives a byte, shared with what is forked, that is 0 until a signal is heard; raises that one again in the end.

    An exception out of a signal's handler may come between the taking of a lock and its release in the executor's
    Python code: one Ctrl-C of 200 was seen to hang there.
    """
    heard = mmap.mmap(-1, 1)

    def note(number: int, _: object) -> None:
        heard[0] = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard[0]:
            signal.raise_signal(heard[0])


_work: tuple[Rehearsals, mmap.mmap] | None = None


def _prepare(rehearsals: Rehearsals, parent: int, heard: mmap.mmap) -> None:
    global _work  # noqa: PLW0603 -- what a worker process of the pool works on
    die_with_parent(parent)
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _work = rehearsals, heard


def _run(seed: int) -> Course | None:
    """None once a signal was heard."""
    assert _work is not None
    rehearsals, heard = _work
    return None if heard[0] else rehearsals.run(seed)

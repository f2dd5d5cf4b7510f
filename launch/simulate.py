"""`phalanx simulate`: the real controller under a virtual clock, with seeded faults: what holds, what it costs."""

import argparse
import contextlib
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from launch.cli_help import parser
from orchestrator.errors import EXIT_FAILED, ConfigError
from orchestrator.observe.units import duration_text, plural
from orchestrator.simulate.advice import Advice, advise
from orchestrator.simulate.faults import reported_interval_s
from orchestrator.simulate.outcome import Course, FaultCost, fault_costs, goodput_of, totals
from orchestrator.simulate.setting import Setting, setting_of

EXAMPLES = """  phalanx simulate experiment=llama_8b_h100x64
  phalanx simulate experiment=llama_8b_h100x64 --gpus 2000 --schedules 1000
  phalanx simulate experiment=llama_8b_h100x64 --gpus 16384 --days 365 --schedules 0
  phalanx simulate experiment=gpt_1_3b_h100x8 checkpoint.every_steps=50 --json
  phalanx simulate experiment=llama_8b_h100x64 --gpus 2000 --days 0 --schedules 1 --seed 123"""
SAY_EVERY_S = 5.0


def run(argv: list[str]) -> int:
    """0 where every invariant held, 1 where one did not: each violation with the seed that replays it."""
    options, overrides = _parser().parse_known_args(argv)
    _check(options)

    from launch.compose import compose
    from launch.plan import planned_device

    config = compose(overrides).config
    setting = setting_of(
        config,
        gpus=options.gpus,
        ranks_per_node=options.ranks_per_node,
        device=planned_device(config),
        step_s=options.step_s,
    )
    with sigterm_as_exit():
        return _Simulation(setting, options, overrides).run()


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """SIGTERM ends what goes on as an exit does: worker processes and folders go first."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    made = parser(
        "simulate",
        "Runs the real controller, lifecycle, checkpoints and data order of a config under a virtual clock, on a\n"
        "cluster that is imagined. First a run of --days with failures as often as large runs reported: what\n"
        "goodput to expect, what each kind of failure costs, how often to take snapshots and checkpoints. Then\n"
        "--schedules short runs crowded with failures, also those that nobody injects: full disks, torn writes,\n"
        "jumping clocks, two drivers, failures during recovery. Exits 1 if a sample was lost or repeated, a commit\n"
        "went backwards, an older driver committed, a budget was overdrawn or a run did not end. Needs neither data\n"
        "nor a GPU.",
        EXAMPLES,
        "[options] [overrides]",
    )
    made.add_argument("--gpus", type=int, help="GPUs of the job (default: cluster.num_workers)")
    made.add_argument("--days", type=float, default=30.0, help="days to predict; 0: none (default: 30)")
    made.add_argument("--schedules", type=int, default=100, help="crowded short runs; 0: none (default: 100)")
    made.add_argument("--seed", type=int, default=1, help="of the prediction and the first schedule (default: 1)")
    made.add_argument("--step-s", type=float, help="seconds of a step (default: what `phalanx plan` predicts)")
    made.add_argument(
        "--ranks-per-node", type=int, default=1, help="ranks that stand for a node's GPUs (default: 1, the fastest)"
    )
    made.add_argument("--json", action="store_true", help="one JSON object on stdout; progress goes to stderr")
    return made


def _check(options: argparse.Namespace) -> None:
    problems = [
        f"--{name} {value} must be {least} or more"
        for name, value, least in (
            ("gpus", options.gpus, 1),
            ("days", options.days, 0),
            ("schedules", options.schedules, 0),
            ("seed", options.seed, 0),
        )
        if value is not None and not least <= value < math.inf
    ]
    if options.step_s is not None and not 0 < options.step_s < math.inf:
        problems.append(f"--step-s {options.step_s} must be more than 0")
    if problems:
        raise ConfigError(*problems)


class _Simulation:
    def __init__(self, setting: Setting, options: argparse.Namespace, overrides: Sequence[str]) -> None:
        self._setting = setting
        self._options = options
        self._overrides = overrides
        self._console = Console(stderr=options.json, highlight=False, emoji=False)
        self._said_s = time.monotonic()

    def run(self) -> int:
        options, setting = self._options, self._setting
        self._say_setting()
        predicted = self._predict() if options.days else None
        courses = self._rehearse() if options.schedules else []
        advice = self._advice(predicted) if predicted else None
        violated = [course for course in (predicted, *courses) if course is not None and course.violations]
        if options.json:
            print(json.dumps(self._as_json(predicted, courses, advice), indent=2))
        for course in violated:
            for violation in course.violations:
                self._say(f"VIOLATION with seed {course.seed}: {violation}")
            self._say(f"  replay: {self._replay(course, is_prediction=course is predicted)}")
        if violated:
            return EXIT_FAILED
        if predicted is not None and advice is not None and not options.json:
            print_prediction(self._console, setting, predicted, advice)
        return 0

    def _predict(self) -> Course:
        from orchestrator.simulate.campaign import predict

        days = self._options.days
        self._say(f"predicting {days:g} days, seed {self._options.seed}")

        def on_progress(share: float) -> None:
            if self._is_time():
                self._say(f"  {share:.0%} of {days:g} days")

        return predict(self._setting, days=days, seed=self._options.seed, on_progress=on_progress)

    def _rehearse(self) -> list[Course]:
        from orchestrator.simulate.campaign import rehearse

        first, number = self._options.seed, self._options.schedules
        self._say(f"rehearsing {plural(number, 'schedule')}, seeds {first} to {first + number - 1}")
        courses: list[Course] = []
        for course in rehearse(self._setting, range(first, first + number)):
            courses.append(course)
            if self._is_time():
                self._say(f"  {len(courses):,} of {number:,}, {totals(courses).violations} violations")
        found = totals(courses)
        self._say(
            f"{plural(len(courses), 'schedule')}: {found.hours:,.0f} hours, {plural(found.faults, 'fault')}, "
            f"recovered {found.recoveries:,} times, "
            f"{plural(found.commits, 'checkpoint')}, {plural(found.drivers, 'driver')}, "
            f"{plural(found.violations, 'violation')}"
        )
        return courses

    def _advice(self, course: Course) -> Advice:
        failures = len(course.recoveries)
        stored = sum(recovery["source"] in ("disk", "remote", "start") for recovery in course.recoveries)
        return advise(self._setting.costs, wall_s=course.wall_s, failures=failures, from_storage=stored)

    def _replay(self, course: Course, *, is_prediction: bool) -> str:
        options = self._options
        words = ["phalanx simulate", *self._overrides, f"--gpus {self._setting.gpus} --seed {course.seed}"]
        words += ["--ranks-per-node", str(options.ranks_per_node)]
        words += [] if options.step_s is None else [f"--step-s {options.step_s:g}"]
        words += [f"--days {options.days:g} --schedules 0" if is_prediction else "--days 0 --schedules 1"]
        return " ".join(words)

    def _as_json(self, predicted: Course | None, courses: Sequence[Course], advice: Advice | None) -> dict[str, Any]:
        setting, found = self._setting, totals(courses)
        return {
            "gpus": setting.gpus,
            "nodes": setting.nodes,
            "costs": asdict(setting.costs),
            "failures_interval_s": reported_interval_s(setting.gpus),
            "prediction": None
            if predicted is None
            else {
                "days": self._options.days,
                "seed": predicted.seed,
                "goodput": goodput_of(predicted),
                "spent_s": predicted.spent_s,
                "faults": [asdict(cost) for cost in fault_costs(predicted)],
                "violations": predicted.violations,
            },
            "advice": None if advice is None else asdict(advice),
            "rehearsal": asdict(found)
            | {"failing": [{"seed": c.seed, "violations": c.violations} for c in courses if c.violations]},
        }

    def _say_setting(self) -> None:
        setting, costs = self._setting, self._setting.costs
        self._say(
            f"{setting.gpus:,} GPUs on {plural(setting.nodes, 'node')}, {setting.config.model.name}, global batch "
            f"{setting.config.train.global_batch_size:,}: steps of {duration_text(costs.step_s)}, one failure in "
            f"about {duration_text(reported_interval_s(setting.gpus))}"
        )
        self._say(
            f"assumed: a snapshot adds {duration_text(costs.stall_s)} to its step and is at the peer "
            f"{duration_text(costs.seal_s + costs.copy_s)} later, a checkpoint takes "
            f"{duration_text(costs.persist_s)}, a start {duration_text(costs.start_s)}, a new agent "
            f"{duration_text(costs.agent_s)}, a lost node is noticed after {duration_text(costs.node_death_s)}"
        )

    def _is_time(self) -> bool:
        now_s = time.monotonic()
        if now_s - self._said_s < SAY_EVERY_S:
            return False
        self._said_s = now_s
        return True

    def _say(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)
        self._console.file.flush()


def print_prediction(console: Console, setting: Setting, course: Course, advice: Advice) -> None:
    goodput = goodput_of(course)
    console.print(f"\ngoodput {goodput:.2%} of {duration_text(sum(course.spent_s.values()))}")
    spent = Table("where the time went", "", "share")
    total_s = sum(course.spent_s.values())
    for name, seconds in sorted(course.spent_s.items(), key=lambda item: -item[1]):
        if seconds:
            spent.add_row(name, duration_text(seconds), f"{seconds / total_s:.3%}")
    console.print(spent)
    costs = Table("fault", "times", "stood still, each", "steps repeated, each", "cost, each", "cost, together")
    for cost in fault_costs(course):
        costs.add_row(*_cost_words(cost, setting.costs.step_s))
    console.print(costs)
    config = setting.config
    console.print(
        f"advice: snapshot.every_steps={advice.snapshot_every_steps} (now {config.snapshot.every_steps}), "
        f"checkpoint.every_steps={advice.checkpoint_every_steps} (now {config.checkpoint.every_steps})",
        soft_wrap=True,
    )
    reason = "as often as storage takes them" if advice.is_storage_bound else "after Daly (2006)"
    console.print(
        f"  a failure in {duration_text(advice.failures_interval_s)}, one that needs storage in "
        f"{duration_text(advice.storage_interval_s)} or more; checkpoints {reason}",
        soft_wrap=True,
    )
    sys.stdout.flush()


def _cost_words(cost: FaultCost, step_s: float) -> tuple[str, ...]:
    each_s = cost.downtime_s + cost.steps_lost * step_s
    return (
        cost.fault,
        f"{cost.count:,}",
        duration_text(cost.downtime_s),
        f"{cost.steps_lost:.1f}",
        duration_text(each_s),
        duration_text(each_s * cost.count),
    )

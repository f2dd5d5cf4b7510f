"""`phalanx prove`: train a config's twin, train it again while its ranks are killed, and compare step by step."""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from launch.cli_help import parser
from launch.kills import Kill, carry_out, seeded_kills
from launch.prove_compare import Check, Course, other_world_checks, same_world_checks
from launch.prove_twin import prepare_words, twin_words, world_size_problems
from launch.training import Training
from orchestrator.config import RunConfig
from orchestrator.errors import EXIT_FAILED, ConfigError, WorkerFailedError
from orchestrator.observe.metrics import surviving_rows
from orchestrator.observe.units import plural
from orchestrator.observe.wording import event_line
from orchestrator.runfolder import RunFolder

CALM = "calm"
EXAMPLES = """  phalanx prove experiment=quickstart
  phalanx prove experiment=quickstart --kills 10 --seed 7
  phalanx prove model=tiny parallel=zero3 --world-sizes 1,4 --steps 40
  phalanx prove experiment=gpt_1_3b_h100x8 parallel=zero1 --json"""


def run(argv: list[str]) -> int:
    """0 if every run was the calm run, else 1. Raises ConfigError.

    Side effects: a new folder `run.root/prove-NNN` with the data and the runs, Rays of its own, one after another.
    """
    options, overrides = _parser().parse_known_args(argv)

    from launch.compose import compose

    config = compose(overrides).config
    _check(config, options)
    return _Proof(config, overrides, options).run()


def _parser() -> argparse.ArgumentParser:
    made = parser(
        "prove",
        "Trains a scaled-down twin of a config (its ZeRO stage, precision, optimizer and schedule on a small model\n"
        "and batch), trains it again with its ranks killed at seeded moments, and compares samples, learning rate,\n"
        "random numbers, loss, gradient norm and the last checkpoint. Exits 1 if anything differs.",
        EXAMPLES,
        "[options] [overrides]",
    )
    made.add_argument("--steps", type=int, default=60, help="optimizer steps of each run (default: 60)")
    made.add_argument("--kills", type=int, default=5, help="SIGKILLs in the second run (default: 5)")
    made.add_argument("--seed", type=int, default=1, help="of the kills' moments and ranks (default: 1)")
    made.add_argument("--workers", type=int, default=2, help="workers of the twin, on this machine (default: 2)")
    made.add_argument("--world-sizes", type=_sizes, default=[], help="other world sizes to compare: 1,4")
    made.add_argument("--json", action="store_true", help="one JSON object on stdout; progress goes to stderr")
    return made


def _sizes(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a list of world sizes; write it as in 1,4") from None


def _check(config: RunConfig, options: argparse.Namespace) -> None:
    problems = world_size_problems(config, options.workers, options.world_sizes)
    if options.steps < 10:
        problems.append(f"--steps {options.steps} is too few for kills between saves; use 10 or more")
    if not 1 <= options.kills <= options.steps // 4:
        problems.append(f"--kills {options.kills} does not fit {options.steps} steps; use 1 to {options.steps // 4}")
    if problems:
        raise ConfigError(*problems)


@dataclass(kw_only=True, slots=True)
class Compared:
    """One run against the calm one."""

    name: str
    world_size: int
    injected: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    """Kills whose moment did not come."""
    checks: list[Check] = field(default_factory=list)

    @property
    def is_equal(self) -> bool:
        return all(check.is_equal for check in self.checks) and not self.missed


class _Proof:
    def __init__(self, config: RunConfig, overrides: list[str], options: argparse.Namespace) -> None:
        self._config = config
        self._overrides = overrides
        self._options = options
        self._root = next_folder(Path(config.run.root))
        self._console = Console(stderr=options.json, highlight=False, emoji=False)
        # Ray would be joined at $RAY_ADDRESS: only what was started here, on this machine, is killed.
        self._environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def run(self) -> int:
        options = self._options
        kills = seeded_kills(options.seed, options.kills, steps=options.steps, world_size=options.workers)
        self._prepare()
        self._train(CALM, options.workers, [])
        compared = [self._killed(kills), *(self._other_world(size) for size in options.world_sizes)]
        is_equal = all(each.is_equal for each in compared)
        if options.json:
            print(json.dumps(self._as_json(compared, is_equal), indent=2))
        else:
            self._print(compared, is_equal)
        return 0 if is_equal else EXIT_FAILED

    def _killed(self, kills: Sequence[Kill]) -> Compared:
        workers = self._options.workers
        done = self._train("killed", workers, kills)
        checks = same_world_checks(self._course("killed"), self._course(CALM))
        injected, missed = [str(kill) for kill in done], [str(kill) for kill in kills[len(done) :]]
        return Compared(name="killed", world_size=workers, injected=injected, missed=missed, checks=checks)

    def _other_world(self, size: int) -> Compared:
        name = f"world-{size}"
        self._train(name, size, [])
        checks = other_world_checks(self._course(name), self._course(CALM), self._config.train.precision)
        injected = [f"{plural(size, 'worker')} in place of {self._options.workers}"]
        return Compared(name=name, world_size=size, injected=injected, checks=checks)

    def _prepare(self) -> None:
        library = Path(sysconfig.get_paths()["stdlib"])
        words = ["prepare", *self._overrides, *prepare_words(self._config, self._data, library)]
        with self._log("prepare").open("wb") as log:
            process = self._start(words, log)
            self._end("prepare", process.wait())

    def _train(self, name: str, num_workers: int, kills: Sequence[Kill]) -> list[Kill]:
        """Train the twin to its end, or raise WorkerFailedError; the kills that were carried out."""
        how = f", {plural(len(kills), 'kill')}" if kills else ""
        self._say(f"{name}: {self._options.steps} steps on {plural(num_workers, 'worker')}{how}")
        words = twin_words(
            self._config, steps=self._options.steps, num_workers=num_workers, root=self._root, data=self._data
        )
        words += [f"run.id={name}", f"fault.max_restarts={len(kills) + 10}"]
        done: list[Kill] = []
        with self._log(name).open("wb") as log:
            process = self._start(["train", *self._overrides, *words], log)
            training = Training(process, RunFolder(self._root / name))
            try:
                attempt: int | None = 0
                for kill in kills:
                    attempt = carry_out(kill, training, attempt)
                    if attempt is None:
                        break
                    done.append(kill)
                    self._say(f"  {kill}")
                code = process.wait()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    if process.poll() is None:
                        process.send_signal(signal.SIGTERM)
                        process.wait()
            self._end(name, code)
        for event in training.events("recovered"):
            self._say(f"  {event_line(event)}")
        return done

    def _start(self, words: list[str], log: Any) -> subprocess.Popen[bytes]:
        # -P: a folder called `model` where the person stands is not ours.
        command = [sys.executable, "-P", "-m", "launch.cli", *words]
        return subprocess.Popen(command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)

    def _end(self, name: str, code: int) -> None:
        if code:
            tail = "\n".join(self._log(name).read_text(errors="replace").splitlines()[-20:])
            raise WorkerFailedError(
                f"{name} ended with exit code {code}: nothing is proved; {self._log(name)}\n{tail}"
            )

    def _course(self, name: str) -> Course:
        from launch.prove_digest import final_digest

        folder = RunFolder(self._root / name)
        return Course(rows=surviving_rows(folder.metrics), final_digest=final_digest(folder))

    @property
    def _data(self) -> Path:
        return self._root / "data"

    def _log(self, name: str) -> Path:
        self._root.mkdir(parents=True, exist_ok=True)
        return self._root / f"{name}.log"

    def _as_json(self, compared: Sequence[Compared], is_equal: bool) -> dict[str, Any]:
        options = self._options
        return {
            "is_equal": is_equal,
            "folder": str(self._root),
            "steps": options.steps,
            "seed": options.seed,
            "runs": [asdict(each) | {"is_equal": each.is_equal} for each in compared],
        }

    def _print(self, compared: Sequence[Compared], is_equal: bool) -> None:
        table = Table("run", "injected", "compared with the calm run", "equal", Column(overflow="fold"))
        for each in compared:
            injected = [*each.injected, *(f"not injected: {kill}" for kill in each.missed)]
            for index, check in enumerate(each.checks):
                first = (each.name, "\n".join(injected)) if index == 0 else ("", "")
                verdict = "[green]yes[/]" if check.is_equal else "[bold red]NO[/]"
                table.add_row(*map(escape, (*first, check.what)), verdict, escape(check.detail))
            table.add_section()
        self._console.print(table)
        self._say(f"runs and logs are in {self._root}")
        self._say("proved: every run was the calm run" if is_equal else "NOT proved: see the table")

    def _say(self, text: str) -> None:
        self._console.print(escape(text), soft_wrap=True)
        self._console.file.flush()


def next_folder(root: Path) -> Path:
    """`root/prove-NNN` with the first free number above all others."""
    numbers = [int(path.name.removeprefix("prove-")) for path in root.glob("prove-[0-9][0-9][0-9]")]
    return root / f"prove-{max(numbers, default=0) + 1:03d}"

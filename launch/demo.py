"""`phalanx demo`: the main job end to end, one worker killed in the middle, by the commands a person would type."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from launch.cli_help import parser
from launch.demo_findings import VICTIM, Kill, Outcome, broken_promises, findings
from launch.training import rank_pid
from orchestrator.config import RunConfig
from orchestrator.errors import EXIT_FAILED, ConfigError
from orchestrator.observe.ledger import read_events
from orchestrator.observe.metrics import read_last_rows, read_rows, surviving_rows
from orchestrator.observe.units import duration_text
from orchestrator.runfolder import RunFolder

EXPERIMENT = "experiment=quickstart"
NO_UPLOADS = "tracking.wandb.mode=offline"
"""A demo writes nothing to anybody's W&B account; the recipe by itself goes online where there is an API key."""
PROMPT = "    def __init__(self, "
_POLL_S = 0.05

EXAMPLES = """  phalanx demo
  phalanx demo train.steps=60 run.root=/tmp/runs"""


def run(argv: list[str]) -> int:
    """Prepare, train, kill, recover, generate. 0 if all went as promised, else 1. Raises ConfigError.

    Side effects: prepared data under `data.path`, a new run folder `run.root/demo-NNN`, a Ray of its own.
    """
    _, overrides = parser(
        "demo",
        "The quickstart recipe, with one worker killed in the middle: every command is shown as it runs.\n"
        "Overrides go to prepare and train alike.",
        EXAMPLES,
        "[overrides]",
    ).parse_known_args(argv)

    from launch.compose import compose

    config = compose([EXPERIMENT, NO_UPLOADS, *overrides]).config
    _check(config)
    return _Demo(config, overrides).run()


def _check(config: RunConfig) -> None:
    problems = []
    if config.cluster.num_workers < 2:
        problems.append(
            f"cluster.num_workers={config.cluster.num_workers}: the demo kills one of the workers, it needs 2 or more"
        )
    if config.train.steps < 4:
        problems.append(f"train.steps={config.train.steps} leaves no middle to kill a worker in; use 4 or more")
    if config.tracking.every_steps != 1:
        problems.append(f"tracking.every_steps={config.tracking.every_steps}: the demo compares every step; use 1")
    if problems:
        raise ConfigError(*problems)


class _Demo:
    def __init__(self, config: RunConfig, overrides: list[str]) -> None:
        self._overrides = overrides
        self._folder = next_folder(Path(config.run.root))
        self._kill_step = middle(config.train.steps, config.checkpoint.every_steps)
        self._workers = f"{config.cluster.num_workers} workers, ZeRO-{config.parallel.zero_stage}"
        self._console = Console(highlight=False, emoji=False)
        self._parts_s: dict[str, float] = {}
        # Ray would be joined at $RAY_ADDRESS: the demo kills only what it started itself, on this machine.
        self._environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}

    def run(self) -> int:
        self._say("phalanx demo: a small GPT learns Python's standard library; one of its workers will be killed")
        code = self._part("prepare", "the text becomes token shards", ["prepare", EXPERIMENT, *self._overrides])
        if code:
            return code
        run_words = [f"run.id={self._folder.run_id}", NO_UPLOADS]
        kills: list[Kill] = []
        code = self._part(
            "train",
            f"{self._workers}, SIGKILL to rank {VICTIM} after step {self._kill_step}",
            ["train", EXPERIMENT, *run_words, *self._overrides],
            lambda process: kills.extend(self._kill_in_the_middle(process)),
        )
        if code:
            return code
        options = ["--prompt", PROMPT, "--max-tokens", "120", "--top-k", "40", "--temperature", "0.7"]
        code = self._part("generate", "what it has learnt", ["generate", str(self._folder.path), *options])
        return code or self._close(kills)

    def _part(
        self,
        name: str,
        what: str,
        words: list[str],
        meanwhile: Callable[[subprocess.Popen[bytes]], None] = lambda process: None,
    ) -> int:
        """Run one phalanx command under a heading; its exit code."""
        self._heading(f"{len(self._parts_s) + 1} of 4: {name}", what)
        self._say(f"$ {shlex.join(['phalanx', *words])}", style="bold")
        started_s = time.monotonic()
        # -P: a folder called `model` where the person stands is not ours.
        command = [sys.executable, "-P", "-m", "launch.cli", *words]
        process = subprocess.Popen(command, env=self._environment)
        try:
            meanwhile(process)
            code = process.wait()
        finally:
            if process.poll() is None:  # Ctrl-C: it drains and ends in order
                process.terminate()
                process.wait()
        self._parts_s[name] = time.monotonic() - started_s
        if code:
            self._say(f"{name} ended with exit code {code}: the demo stops here", style="red")
        return code

    def _kill_in_the_middle(self, training: subprocess.Popen[bytes]) -> list[Kill]:
        """Waits until metrics.jsonl has the middle step, then kills; empty where training ended before."""
        while training.poll() is None:
            rows = read_last_rows(self._folder.metrics, 1)
            if rows and rows[0].step >= self._kill_step:
                pid = rank_pid(self._folder.rank_log(1, VICTIM), descends_from=training.pid)
                if pid is None:
                    return []
                os.kill(pid, signal.SIGKILL)
                self._say(f"demo: kill -9 {pid}, which is rank {VICTIM}, after step {rows[0].step}", style="bold red")
                return [Kill(pid, rows[0].step)]
            time.sleep(_POLL_S)
        return []

    def _close(self, kills: Sequence[Kill]) -> int:
        self._heading("4 of 4: what happened", "read from the run folder")
        outcome = Outcome(
            kills=kills,
            events=read_events(self._folder.events),
            rows=read_rows(self._folder.metrics),
            losses=[row.loss for row in surviving_rows(self._folder.metrics).values()],
        )
        for name, text in findings(outcome).items():
            self._say(f"{name:<12}{text}")
        times = ", ".join(f"{name} {duration_text(part_s)}" for name, part_s in self._parts_s.items())
        self._say(f"{'time':<12}{times}")
        self._say(f"{'run folder':<12}{self._folder.path}")
        for index, command in enumerate(next_commands(self._folder.path)):
            self._say(f"{'' if index else 'next':<12}{command}")
        problems = broken_promises(outcome)
        for problem in problems:
            self._say(f"not as promised: {problem}", style="red")
        if not problems:
            self._say("all as promised", style="green")
        return EXIT_FAILED if problems else 0

    def _heading(self, title: str, what: str) -> None:
        self._say(f"\n== {title}: {what}", style="bold cyan")

    def _say(self, text: str, style: str | None = None) -> None:
        self._console.print(escape(text), style=style, soft_wrap=True)
        self._console.file.flush()


def next_commands(folder: Path) -> list[str]:
    """What to type next, as it stands; `make demo` does not put `phalanx` on the path."""
    quoted = shlex.quote(str(folder))
    activate = Path(sys.prefix, "bin", "activate")
    is_on_path = shutil.which("phalanx") is not None
    return [
        *([] if is_on_path or not activate.exists() else [f"source {shlex.quote(short(activate))}"]),
        f"phalanx status {quoted}",
        f"phalanx generate {quoted} --prompt 'class ' --count 3",
        "phalanx plan experiment=gpt_1_3b_h100x8",
        "phalanx train --help",
    ]


def short(path: Path) -> str:
    """As seen from here, where it lies below."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def middle(steps: int, checkpoint_every_steps: int) -> int:
    """The step to kill after: past the middle, and between two checkpoints, so that storage alone would lose some.

    150 steps, a checkpoint each 25: 75 has one, so 83.
    """
    return min(steps - 1, steps // 2 + checkpoint_every_steps // 3)


def next_folder(root: Path) -> RunFolder:
    """`root/demo-NNN` with the first free number above all others."""
    numbers = [int(path.name.removeprefix("demo-")) for path in root.glob("demo-[0-9][0-9][0-9]")]
    return RunFolder(root / f"demo-{max(numbers, default=0) + 1:03d}")

"""`phalanx doctor --nodes`: asks every node of the SLURM allocation that this process runs in, with srun."""

import contextlib
import json
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch.slurm import commands
from orchestrator.codec import decode
from orchestrator.doctor.finding import Finding, Level, NodeReport
from orchestrator.doctor.node import MARK, NOT_SHARED
from orchestrator.errors import ConfigError


def nodes_of_allocation() -> list[str]:
    """Raises ConfigError outside of an allocation, SlurmError where SLURM does not answer."""
    names = os.environ.get("SLURM_JOB_NODELIST")
    if names is None:
        raise ConfigError(
            "--nodes asks every node of a SLURM allocation, and this is none: run it inside of one, as in "
            "salloc -N2 phalanx doctor --nodes"
        )
    return commands.hostnames(names)


def ask(nodes: Sequence[str], folders: Sequence[str]) -> tuple[list[NodeReport], dict[str, str], list[Finding]]:
    """(what each node said, last words of those that said nothing, rows on the shared folder)."""
    with _token(Path(folders[0])) as token:
        reports, words = _srun(nodes, [str(token), *folders])
        hosts = [report.host for report in reports]
        unseen = [host for host in hosts if not token.with_name(f"{token.name}.{host}").exists()]
    row = f"shared folder {folders[0]}"
    if unseen:
        found = f"what {', '.join(unseen)} wrote is not here"
        return reports, words, [Finding(row, Level.fail, found, NOT_SHARED)]
    return reports, words, []


@contextlib.contextmanager
def _token(folder: Path) -> Iterator[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".phalanx-doctor-{secrets.token_hex(8)}"
    token.touch()
    try:
        yield token
    finally:
        for file in folder.glob(f"{token.name}*"):
            file.unlink(missing_ok=True)


def _srun(nodes: Sequence[str], words: Sequence[str]) -> tuple[list[NodeReport], dict[str, str]]:
    command = [
        "srun", "--overlap", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1",
        "--kill-on-bad-exit=0", "--label", sys.executable, "-m", "orchestrator.doctor.node", *words,
    ]  # fmt: skip
    said: dict[int, list[Finding]] = {}
    reports: list[NodeReport] = []
    last_words: dict[str, str] = {}
    before = time.time()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            label, _, text = line.rstrip("\n").partition(": ")
            if not label.strip().isdecimal() or int(label) >= len(nodes):
                continue
            if not text.startswith(MARK):
                last_words[nodes[int(label)]] = text
                continue
            told = json.loads(text.removeprefix(MARK))
            if "row" in told:
                said.setdefault(int(label), []).append(decode(Finding, told))
            else:  # its last line
                findings = tuple(said.get(int(label), ()))
                reports.append(NodeReport(told["host"], told["time_s"], (before, time.time()), findings))
    return reports, last_words

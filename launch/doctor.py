"""`phalanx doctor`: is this environment fit to train in? Row by row, each with its cure."""

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from launch.cli_help import parser
from orchestrator.doctor.finding import (
    Finding,
    Level,
    as_lines,
    clock_findings,
    joint_findings,
    missing_findings,
    worst,
)
from orchestrator.errors import EXIT_FAILED
from orchestrator.observe.units import plural
from orchestrator.probe import Probe

STYLES = {Level.ok: "green", Level.warn: "yellow", Level.fail: "bold red"}

EXAMPLES = """  phalanx doctor
  phalanx doctor --root /scratch/runs --address head:6379
  salloc -N4 phalanx doctor --nodes --root /shared/runs
  phalanx doctor --probe
  phalanx doctor --json | jq '.findings[] | select(.level != "OK")'"""


def run(argv: list[str]) -> int:
    """Exit code 0 where nothing fails, 1 where something does. Raises ConfigError for --nodes outside of SLURM."""
    reader = parser("doctor", "Look at the environment, row by row, each with its cure.", EXAMPLES, "[options]")
    reader.add_argument("--root", default="runs", help="where runs and checkpoints would lie (run.root)")
    reader.add_argument("--address", help="HOST:PORT of an existing Ray cluster (cluster.address)")
    reader.add_argument("--nodes", action="store_true", help="ask every node of this SLURM allocation")
    reader.add_argument(
        "--probe", action="store_true", help="measure this CPU, some seconds; `phalanx plan` reads the figures"
    )
    reader.add_argument("--json", action="store_true", help="one object instead of a table")
    options = reader.parse_args(argv)
    if options.probe:
        return _probe(as_json=options.json)
    found = []
    for finding in _of_all_nodes(options.root) if options.nodes else _of_this_one(options.root, options.address):
        found.append(finding)
        if not options.json:
            _print(finding)
    level = worst(found)
    if options.json:
        print(json.dumps({"level": level, "findings": [asdict(finding) for finding in found]}, indent=2))
    else:
        counts = [f"{sum(f.level is each for f in found)} {each}" for each in Level]
        print(f"\n{', '.join(counts)}" + ("" if level is Level.ok else ": see the arrows"))
    return EXIT_FAILED if level is Level.fail else 0


def _probe(*, as_json: bool) -> int:
    """Lines of progress go to stderr, so that stdout is the figures."""
    from orchestrator.codec import encode
    from orchestrator.doctor.proberecord import record_probe
    from orchestrator.doctor.probing import probe_cpu

    probe = probe_cpu(lambda line: print(line, file=sys.stderr, flush=True))
    path = record_probe(probe)
    print(json.dumps(encode(probe), indent=2) if as_json else "\n".join([*probe_lines(probe), f"kept in {path}"]))
    return 0


def probe_lines(probe: Probe) -> list[str]:
    """A row for each number of threads."""
    lines = [f"{probe.host}, {probe.cpus} CPUs, {probe.date}"]
    for rates in probe.rates:
        products = [
            f"{precision} {', '.join(f'{flops / 1e9:,.0f}' for flops in by_width.values())}"
            for precision, by_width in rates.matmul_flops_per_s.items()
        ]
        widths = ", ".join(map(str, next(iter(rates.matmul_flops_per_s.values()))))
        lines.append(
            f"{plural(rates.threads, 'thread')} a rank: GFLOP/s at widths {widths}: {'; '.join(products)}; "
            f"memory {rates.memory_bytes_per_s / 1e9:.1f} GB/s"
        )
    lines.append(f"gloo all-reduce of two processes: {probe.link_bytes_per_s / 1e9:.2f} GB/s")
    return lines


def _of_this_one(root: str, address: str | None) -> Iterable[Finding]:
    from orchestrator.doctor.node import look

    return look([root], address)


def _of_all_nodes(root: str) -> Iterable[Finding]:
    from launch.slurm.allocation import ask, nodes_of_allocation

    nodes = nodes_of_allocation()
    reports, words, shared = ask(nodes, [root])
    return [*joint_findings(reports), *shared, *clock_findings(reports), *missing_findings(nodes, reports, words)]


def _print(finding: Finding) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in as_lines([finding]):
        text = Text(line)
        text.stylize(STYLES[finding.level], 0, 4)
        console.print(text)

"""`phalanx train`: run here or on a Ray cluster; the same command goes on with what was begun."""

import os
import shlex
import sys

from launch.compose import compose, recipe_yaml, resolved_yaml
from launch.slurm.jobspec import SUBMITTED_AS
from orchestrator.control.driver import drive
from orchestrator.control.session import Typed

HELP = """usage: phalanx train [--config-dir DIR] [--cfg] [KEY=VALUE ...]

Trains a model: here, or on the Ray cluster that cluster.address (or RAY_ADDRESS) names. A run whose folder
exists goes on from its newest checkpoint that verifies; a finished one does nothing and exits 0.

SIGINT (Ctrl-C), SIGTERM and SIGUSR1 save at the next step boundary and leave with exit code 75; a second one
leaves at once. Repeat the command to go on.

options:
  --config-dir DIR, -cd DIR  a folder of your own choices beside conf/
  --cfg                      print the resolved config and do nothing
  -m, --multirun             every combination of KEY=A,B as a run of its own: a sweep (phalanx sweep --help)

examples:
  phalanx train experiment=quickstart
  phalanx train model=tiny data.path=prepared/stdlib cluster.num_workers=2 parallel.zero_stage=2 train.steps=20
  phalanx train experiment=gpt_125m_h100x8 data.path=/data/corpus cluster.address=auto
  phalanx train experiment=quickstart cluster.num_workers=4     # the same run, resized
  phalanx train -m experiment=quickstart optim.lr=1e-3,2e-3     # two trials

exit codes: 0 done; 1 the run failed; 2 wrong config or arguments; 75 stopped early but resumable"""


def run(argv: list[str]) -> int:
    if {"-h", "--help"} & {*argv}:
        print(HELP)
        return 0
    if {"-m", "--multirun"} & {*argv}:
        from launch.sweep import run_grid

        return run_grid(argv)
    composed = compose(argv)
    typed = Typed(
        overrides=composed.overrides,
        config_yaml=resolved_yaml(composed.config),
        recipe_yaml=recipe_yaml(composed),
        command=os.environ.get(SUBMITTED_AS) or shlex.join(["phalanx", "train", *argv]),
    )
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    return drive(composed.config, typed)

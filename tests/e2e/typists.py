"""What every run of these tests is typed with, and who types on a shared Ray."""

import os
import secrets
from pathlib import Path

from typed import SharedRay, Typist

MARK = f"PHALANX_E2E_MARK={secrets.token_hex(8)}"
"""In the environment of every process that these tests start."""

TRAIN_WORDS = [
    "model=tiny",
    "train.seq_len=64",
    "train.global_batch_size=16",
    "train.micro_batch_size=2",
    "train.steps=60",
    "optim.lr=1e-3",
    "optim.warmup_steps=5",
    "checkpoint.every_steps=7",
    "train.eval_every_steps=20",
    "train.eval_rows=16",
    "parallel.zero_stage=2",
    "cluster.num_workers=2",
    "tracking.wandb.mode=disabled",
    "fault.driver_grace_s=0",  # what a test that fails leaves on a shared Ray ends by itself
]


def clean_environment() -> dict[str, str]:
    """The user's, without what would point a run elsewhere."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_", "SLURM_"))}
    name, _, value = MARK.partition("=")
    return kept | {name: value}


def joined_typist(scratch: Path, data: Path, shared_ray: SharedRay) -> Typist:
    return Typist(scratch, clean_environment() | shared_ray.environment, [*TRAIN_WORDS, f"data.path={data}"])

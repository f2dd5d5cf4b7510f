"""Whether two runs were the same run."""

import subprocess

import pytest
from typed import PHALANX, Run

from orchestrator.observe.metrics import StepRow


def learned(row: StepRow) -> tuple[object, ...]:
    """What a step did, without how long it took."""
    return row.step, row.batch_digest, row.loss, row.grad_norm, row.lr, row.rng_digest, row.tokens, row.eval_loss


def assert_bit_equal(run: Run, reference: Run) -> None:
    """Every step's data, loss, gradient norm and learning rate, and the final checkpoint's every bit."""
    assert [learned(row) for row in run.rows().values()] == [learned(row) for row in reference.rows().values()]
    assert final_digest(run) == final_digest(reference)


def assert_same_course(run: Run, reference: Run) -> None:
    """As promised across world sizes and ZeRO stages: the same data and learning rates, losses within 1e-5."""
    ours, theirs = run.rows(), reference.rows()
    assert list(ours) == list(theirs)
    for step, row in ours.items():
        other = theirs[step]
        assert (row.batch_digest, row.lr, row.tokens) == (other.batch_digest, other.lr, other.tokens)
        assert row.loss == pytest.approx(other.loss, rel=1e-5)


def final_digest(run: Run) -> str:
    """What `ckpt verify --digest` says of the newest checkpoint, which must verify."""
    words = ["ckpt", "verify", str(run.folder.path), "--step", str(run.committed_steps()[-1]), "--digest"]
    done = subprocess.run([PHALANX, *words], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]

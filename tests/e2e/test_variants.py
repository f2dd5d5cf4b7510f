"""Every way of training that the command line offers does its steps."""

import pytest
from typed import Run, Typist

pytestmark = pytest.mark.real

STEPS = 5
VARIANTS = {
    "stage 0, ranks that import for themselves": ["parallel.zero_stage=0", "worker.start=spawn"],
    "stage 1, the optimizer on the CPU": ["parallel.zero_stage=1", "parallel.offload=optimizer"],
    "stage 3, bf16, documents apart": [
        "parallel.zero_stage=3",
        "train.precision=bf16",
        "data.isolate_documents=true",
    ],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_does_its_steps(typist: Typist, run: Run, variant: str, reference: Run) -> None:
    short = [f"train.steps={STEPS}", "optim.schedule_steps=60", "train.eval_every_steps=3"]
    typist.train(run, *VARIANTS[variant], *short).finish()
    rows, whole = run.rows(), reference.rows()
    assert list(rows) == list(range(1, STEPS + 1))
    assert [step for step, row in rows.items() if row.eval_loss is not None] == [3, STEPS]
    isolates = "data.isolate_documents=true" in VARIANTS[variant]
    for step, row in rows.items():
        assert (row.batch_digest, row.lr) == (whole[step].batch_digest, whole[step].lr)
        assert row.loss == pytest.approx(whole[step].loss, rel=5e-2 if isolates else 1e-5)
    assert run.committed_steps() == [STEPS]
    assert len(run.events("attempt_started")) == 1

"""Values that the tests of this folder and of the verbs share."""

from typing import Any

from orchestrator.observe.metrics import StepRow


def row(step: int, attempt: int = 1, **changes: Any) -> StepRow:
    values: dict[str, Any] = {
        "step": step,
        "attempt": attempt,
        "loss": 3.421,
        "lr": 2.9e-4,
        "grad_norm": 0.91,
        "tokens": 49_152,
        "tokens_per_s": 512_340.0,
        "step_s": 0.5,
        "data_s": 0.006,
        "batch_digest": "0123456789abcdef",
    }
    return StepRow(**(values | changes))

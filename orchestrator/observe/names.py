"""What a row is called where people look: torchtitan's names, and the same as Prometheus takes them. Plan half."""

import re
from typing import Any

from orchestrator.observe.metrics import StepRow

_UNITS = {"(%)": " percent", "(s)": " seconds", "(GiB)": " gib", "(C)": " celsius", "(MHz)": " mhz"}


def row_values(row: StepRow) -> dict[str, Any]:
    """A row under the names that torchtitan's users know; what is not known is left out."""
    per_worker = row.tokens_per_s / row.world_size if row.world_size else None
    values = {
        "train/step": row.step,
        "train/attempt": row.attempt,
        "train/workers": row.world_size,
        "loss_metrics/global_avg_loss": row.loss,
        "grad_norm": row.grad_norm,
        "lr": row.lr,
        "throughput(tps)": per_worker,
        "throughput/total_tokens_per_s": row.tokens_per_s,
        "mfu(%)": None if row.mfu is None else 100 * row.mfu,
        "time_metrics/end_to_end(s)": row.step_s,
        "time_metrics/data_loading(s)": row.data_s,
        "time_metrics/data_loading(%)": 100 * row.data_s / row.step_s if row.step_s > 0 else None,
        "memory/max_reserved(GiB)": None if row.memory_bytes is None else row.memory_bytes / 2**30,
        "gpu/temperature_max(C)": row.gpu_temperature_c,
        "gpu/sm_clock_min(MHz)": row.gpu_sm_clock_mhz,
        "gpu/ecc_uncorrected": row.gpu_ecc_uncorrected,
        "gpu/slowed": row.gpus_slowed,
        "eval/loss": row.eval_loss,
        "eval/perplexity": row.eval_perplexity,
        "eval/bits_per_byte": row.eval_bits_per_byte,
        "goodput(%)": None if row.goodput is None else 100 * row.goodput,
    }
    return {name: value for name, value in values.items() if value is not None}


def prometheus_name(name: str) -> str:
    """`time_metrics/data_loading(s)` -> `phalanx_time_metrics_data_loading_seconds`."""
    for unit, words in _UNITS.items():
        name = name.replace(unit, words)
    return "phalanx_" + re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")

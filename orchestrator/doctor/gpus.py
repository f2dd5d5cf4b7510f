"""The GPUs that this process may use: how many, whether each is one of its own, and what the driver says of them."""

import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from orchestrator.doctor.finding import Finding, Level

QUERY = (
    "uuid",
    "ecc.errors.uncorrected.volatile.total",
    "clocks_throttle_reasons.hw_thermal_slowdown",
    "clocks_throttle_reasons.hw_power_brake_slowdown",
    "clocks_throttle_reasons.sw_thermal_slowdown",
)
"""Of nvidia-smi, which comes with the driver and asks NVML."""
SMI_TIMEOUT_S = 30.0
DRAIN = "have the node drained: scontrol update NodeName=... State=DRAIN Reason=..."


def visible_gpus() -> list[str]:
    """Their UUIDs, in the order of CUDA."""
    return [f"GPU-{torch.cuda.get_device_properties(index).uuid}" for index in range(torch.cuda.device_count())]


def gpu_findings(uuids: Sequence[str], expected: int) -> Iterator[Finding]:
    """`expected`: GPUs that the job was given on this node."""
    twice = [uuid for uuid, times in Counter(uuids).items() if times > 1]
    if len(uuids) < expected:
        yield Finding("GPUs", Level.fail, f"{len(uuids)} can be used, {expected} were given", DRAIN)
    elif twice:
        yield Finding("GPUs", Level.fail, f"{twice[0]} is there twice", "look at CUDA_VISIBLE_DEVICES in the set-up")
    else:
        yield Finding("GPUs", Level.ok, f"{len(uuids)}, each one of its own")
    yield from health(_nvidia_smi(), uuids)


def health(answer: str, uuids: Sequence[str]) -> Iterator[Finding]:
    """What `nvidia-smi --query-gpu` says of `uuids` in lines of CSV; nothing where it says nothing."""
    problems: list[tuple[Level, str]] = []
    told = [line.split(", ") for line in answer.splitlines()]
    ours = [fields for fields in told if len(fields) == len(QUERY) and fields[0] in uuids]
    for uuid, errors, hot, braked, warm in ours:
        if errors.isdecimal() and int(errors):
            problems.append((Level.fail, f"{uuid} had {errors} memory errors that ECC could not correct"))
        if hot == "Active":
            problems.append((Level.fail, f"{uuid} is slowed down by its hardware for its heat"))
        if braked == "Active":
            problems.append((Level.fail, f"{uuid} is slowed down for want of power"))
        if warm == "Active":
            problems.append((Level.warn, f"{uuid} is slowed down by the driver for its heat"))
    for level, found in problems:
        yield Finding("GPU health", level, found, DRAIN)
    if ours and not problems:
        yield Finding("GPU health", Level.ok, "no memory errors, not throttled")


def _nvidia_smi() -> str:
    """Empty where there is none, or it does not answer."""
    if shutil.which("nvidia-smi") is None:
        return ""
    words = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout

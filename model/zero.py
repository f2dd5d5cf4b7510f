"""The DeepSpeed JSON as a pure function of the plan's numbers. Plan half: standard library only.

Our engine builds the optimizer (two groups: decayed and not) and sets the learning rate itself, so the JSON
has no `optimizer` and no `scheduler`.
"""

import copy
from dataclasses import dataclass
from typing import Any

MAX_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's own default: 1 GB of bf16 in flight."""
MIN_BUCKET_ELEMENTS = 131_072
PREFETCH_ELEMENTS = 50_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000
"""Stage 3: elements that may be gathered at a time; the default, written out because memory counts it."""
PERSISTENCE_ELEMENTS = 100_000
"""Stage 3: smaller parameters are never partitioned: a gather would cost more than it saves."""
NVME_BUFFERS = 50
NVME_SUB_GROUP_ELEMENTS = 100_000_000
"""Elements whose optimizer states are read from disk, stepped and written back at a time."""
SMALL_MODEL_PARAMETERS = 50_000_000
"""Below this every parameter is partitioned, otherwise a test of stage 3 would exercise nothing."""

OWNED_KEYS: dict[str, str] = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size and train.micro_batch_size",
    "gradient_clipping": "optim.grad_clip",
    "optimizer": "optim.name and its fields",
    "scheduler": "optim.schedule",
    "bf16.enabled": "train.precision",
    "fp16.enabled": "train.precision",
    "torch_autocast": "train.precision",
    "zero_optimization.stage": "parallel.zero_stage",
    "zero_optimization.offload_optimizer.device": "parallel.offload",
    "zero_optimization.offload_param.device": "parallel.offload",
    "zero_optimization.reduce_bucket_size": "parallel.bucket_elements",
    "zero_optimization.allgather_bucket_size": "parallel.bucket_elements",
}
"""DeepSpeed key -> the key of ours that decides it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Buckets:
    """Sizes in elements of what ZeRO communicates at a time."""

    reduce: int
    allgather: int
    prefetch: int
    persistence: int


def buckets_for(parameters: int, bucket_elements: int | None = None) -> Buckets:
    """Bucket sizes for a model of `parameters` elements; `bucket_elements` overrides the derived size.

    Stage 3 allocates a whole reduce bucket at start: DeepSpeed's 500 M elements would cost a tiny model 2 GB,
    and no bucket needs to exceed the model. 1,000,000 parameters get 1,000,448 (a multiple of 1,024).
    """
    derived = min(MAX_BUCKET_ELEMENTS, max(MIN_BUCKET_ELEMENTS, -(-parameters // 1024) * 1024))
    size = bucket_elements if bucket_elements is not None else derived
    return Buckets(
        reduce=size,
        allgather=size,
        prefetch=min(PREFETCH_ELEMENTS, size),
        persistence=0 if parameters < SMALL_MODEL_PARAMETERS else PERSISTENCE_ELEMENTS,
    )


def ds_config(
    *,
    micro_batch_size: int,
    micro_steps: int,
    world_size: int,
    zero_stage: int,
    precision: str,
    optimizer: str,
    grad_clip: float,
    device: str,
    parameters: int,
    largest_parameter: int,
    offload: str = "none",
    nvme_path: str | None = None,
    bucket_elements: int | None = None,
    extra: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `deepspeed.initialize(config=...)` gets; `extra` (parallel.ds_config) is merged last, key by key.

    After a resize the batch may be uneven: `train_batch_size` is then a little more than the global batch,
    because DeepSpeed counts the padding rows too. `parameters` and `largest_parameter` are in elements.
    """
    config: dict[str, Any] = {
        "train_batch_size": micro_batch_size * micro_steps * world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": grad_clip,
        "steps_per_print": 10**9,  # we print, DeepSpeed doesn't
        "wall_clock_breakdown": False,
        "zero_optimization": _zero_section(zero_stage, device, buckets_for(parameters, bucket_elements)),
    }
    if zero_stage > 0:
        partition_elements = -(-largest_parameter // world_size)
        config["zero_optimization"] |= _offload_sections(offload, device, nvme_path, partition_elements)
    if precision == "bf16":
        config["bf16"] = {"enabled": True}
    if precision == "fp16":
        # loss_scale 0 means dynamic.
        config["fp16"] = {"enabled": True, "loss_scale": 0, "initial_scale_power": 16}
    if zero_stage > 0 and optimizer == "sgd":
        config["zero_allow_untested_optimizer"] = True
    if offload != "none":
        # torch's AdamW steps offloaded states too: DeepSpeedCPUAdam is faster, but is compiled on first use.
        config["zero_force_ds_cpu_optimizer"] = False
    if offload == "nvme":
        config["aio"] = {
            "block_size": 1_048_576,
            "queue_depth": 32,
            "intra_op_parallelism": 1,
            "single_submit": False,
            "overlap_events": True,
        }
    return merge(config, extra or {})


def _zero_section(stage: int, device: str, buckets: Buckets) -> dict[str, Any]:
    if stage == 0:
        return {"stage": 0}
    section: dict[str, Any] = {
        "stage": stage,
        "contiguous_gradients": True,
        # A second stream hides communication behind the backward pass; a CPU has no streams.
        "overlap_comm": device == "cuda",
        "reduce_scatter": True,
        "reduce_bucket_size": buckets.reduce,
        "allgather_bucket_size": buckets.allgather,
    }
    if stage == 3:
        section |= {
            "stage3_param_persistence_threshold": buckets.persistence,
            "stage3_prefetch_bucket_size": buckets.prefetch,
            "stage3_max_live_parameters": MAX_LIVE_PARAMETERS,
            "stage3_max_reuse_distance": MAX_LIVE_PARAMETERS,
        }
    return section


def _offload_sections(offload: str, device: str, nvme_path: str | None, partition_elements: int) -> dict[str, Any]:
    pin_memory = device == "cuda"
    if offload == "optimizer":
        return {"offload_optimizer": {"device": "cpu", "pin_memory": pin_memory}}
    if offload == "params":
        return {
            "offload_optimizer": {"device": "cpu", "pin_memory": pin_memory},
            "offload_param": {"device": "cpu", "pin_memory": pin_memory},
        }
    if offload == "nvme":
        on_disk = {"device": "nvme", "nvme_path": nvme_path, "pin_memory": pin_memory}
        return {
            "offload_optimizer": {**on_disk, "buffer_count": 5},
            # One buffer must hold the largest parameter's partition, and a prefetch fills many at a time.
            "offload_param": {
                **on_disk,
                "buffer_count": NVME_BUFFERS,
                "buffer_size": max(partition_elements, MIN_BUCKET_ELEMENTS),
                "max_in_cpu": 0,
            },
            "sub_group_size": NVME_SUB_GROUP_ELEMENTS,
        }
    return {}


def merge(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`base` with `extra` laid over it: dicts merge key by key, all else is replaced. Changes neither."""
    merged = copy.deepcopy(base)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def ds_config_problems(extra: dict[str, Any]) -> list[str]:
    """A sentence for each key of `parallel.ds_config` that the plan decides."""
    problems = []
    for key, ours in OWNED_KEYS.items():
        value: Any = extra
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is not None:
            problems.append(
                f"parallel.ds_config.{key}={value} is decided by the plan; remove it and set {ours} instead"
            )
    return problems

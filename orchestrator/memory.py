"""Peak memory of one rank, by what holds it, for every ZeRO stage. Plan half: arithmetic only.

The peak is taken at the start of the backward pass, when all activations and the logits are alive, plus all
gradients, which is a little pessimistic. On a GPU the CUDA context (0.5 GB or so) and fragmentation are not counted
but assumed: `HEADROOM`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod

from model.config import Activation, ModelConfig, Norm
from model.sizing import parameter_shapes
from model.zero import MAX_BUCKET_ELEMENTS, MAX_LIVE_PARAMETERS, Buckets, buckets_for
from orchestrator.config import Offload, OptimConfig, OptimizerName, Precision
from orchestrator.spec import RankMemory

STAGES = (0, 1, 2, 3)
FP32_BYTES = 4
HEADROOM = 0.92
"""Share of a GPU's memory that a rank may fill: the rest is assumed for the CUDA context and fragmentation. On a CPU
`snapshotmemory.process_bytes` has what malloc keeps, as measured."""
ASSUMED_FOR = "fragmentation and the CUDA context"
LOSS_CHUNK_BYTES = 2 * (1 << 24) * FP32_BYTES
"""The objective holds at most so much of the softmax in fp32 at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateBytes:
    """What a rank keeps of the model between steps."""

    parameters: int
    gradients: int
    optimizer: int
    host: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLoad:
    """All that decides how much memory one rank needs."""

    model: ModelConfig
    """Resolved: no nulls."""
    zero_stage: int
    world_size: int
    micro_batch_size: int
    seq_len: int
    precision: Precision
    moments: int
    """fp32 numbers the optimizer keeps per parameter: Adam 2, SGD 1, SGD without momentum 0."""
    offload: Offload
    device: str
    activation_checkpointing: bool
    isolate_documents: bool
    bucket_elements: int | None = None


def num_moments(optim: OptimConfig) -> int:
    if optim.name is OptimizerName.sgd:
        return 1 if optim.momentum else 0
    return 2


def dtype_bytes(precision: Precision) -> int:
    return FP32_BYTES if precision is Precision.fp32 else 2


def state_bytes(
    parameters: int,
    *,
    zero_stage: int,
    world_size: int,
    precision: Precision,
    moments: int = 2,
    offload: Offload = Offload.none,
) -> StateBytes:
    """Parameters, gradients and optimizer states of one rank (arXiv 1910.02054, section 5).

    7.5 B parameters, Adam in mixed precision, 64 ranks: 120, 31.4, 16.6 and 1.9 GB at stages 0 to 3. In fp32
    the parameters are their own masters at stages 0 and 3; stages 1 and 2 keep a second, partitioned copy, as
    DeepSpeed does. Offloaded: the fp32 states, an fp32 gradient to step with and a staging copy in compute
    type go to the host (or the disk); stage 1 keeps its whole gradient on the device.
    """
    part = -(-parameters // world_size)
    width = dtype_bytes(precision)
    is_offloaded = offload is not Offload.none and zero_stage > 0
    is_own_master = precision is Precision.fp32 and zero_stage in (0, 3) and not is_offloaded
    state_width = FP32_BYTES * (moments + (0 if is_own_master else 1))
    host = 0
    held_parameters = (part if zero_stage == 3 else parameters) * width
    gradients = (part if zero_stage >= 2 else parameters) * width
    optimizer = (part if zero_stage >= 1 else parameters) * state_width
    if is_offloaded:
        host = optimizer + part * (FP32_BYTES + width)
        optimizer = 0
        if zero_stage >= 2:
            gradients = 0
        if zero_stage == 3 and offload in (Offload.params, Offload.nvme):
            host += held_parameters
            held_parameters = 0
    return StateBytes(parameters=held_parameters, gradients=gradients, optimizer=optimizer, host=host)


def block_activation_bytes(load: RankLoad) -> int:
    """What one Transformer block keeps for its backward pass, for one micro-batch.

    Korthikanti et al. (arXiv 2205.05198) count 34 * seq * micro * hidden bytes at 16 bits, beside the
    attention matrices; fused attention keeps no matrix but one fp32 number per head and token. Per token, in
    elements: the inputs and outputs of both norms (4 h), queries (h), keys and values (2 kv), the attention's
    output (h), and the feed-forward's (GELU 2 f, ReLU f, SwiGLU 4 f); dropout masks are one byte each.
    Without dropout and with f = 4 h and kv = h that is 16 h elements: the paper's 34 bytes less two masks.
    On a CPU torch fuses neither RMSNorm nor attention with dropout, and its masks are of compute type.
    """
    model, width = load.model, dtype_bytes(load.precision)
    hidden, heads = model.hidden_size, model.num_heads
    kv_size = hidden // heads * (model.num_kv_heads or heads)
    kept_ffn = {Activation.gelu: 2, Activation.relu: 1, Activation.swiglu: 4}[model.activation]
    elements = 2 * hidden + 2 * kv_size + kept_ffn * model.ffn_hidden_size
    per_token = elements * width + 2 * _norm_bytes(load) + heads * FP32_BYTES + 2 * _mask_bytes(load)
    if load.isolate_documents:
        # The mask becomes an additive one in each block, and grouped heads are repeated to go with it.
        per_token += load.seq_len * width + 2 * (hidden - kv_size) * width
    if model.dropout > 0 and load.device == "cpu":
        # The attention matrix, its dropout mask and the dropped copy.
        per_token += 3 * heads * load.seq_len * width
    return load.micro_batch_size * load.seq_len * per_token


@dataclass(frozen=True, kw_only=True, slots=True)
class Activations:
    """What one micro-batch keeps for its backward pass, by layer; bytes."""

    num_layers: int
    block: int
    """Of one block, whole."""
    block_input: int
    """What a block keeps with activation checkpointing; one block at a time is whole then."""
    ends: int
    """The embedding's dropout mask and the last norm."""

    def kept(self, *, is_checkpointed: bool) -> int:
        """Of all layers, under that policy."""
        each = self.block_input if is_checkpointed else self.block
        return self.num_layers * each + (self.block if is_checkpointed else 0) + self.ends


def activations_by_layer(load: RankLoad) -> Activations:
    tokens = load.micro_batch_size * load.seq_len
    return Activations(
        num_layers=load.model.num_layers,
        block=block_activation_bytes(load),
        block_input=tokens * load.model.hidden_size * dtype_bytes(load.precision),
        ends=tokens * (_norm_bytes(load) + _mask_bytes(load)),
    )


def activation_bytes(load: RankLoad) -> int:
    """All layers' activations of one micro-batch, under the policy of `load`; the logits are not among them."""
    return activations_by_layer(load).kept(is_checkpointed=load.activation_checkpointing)


def _norm_bytes(load: RankLoad) -> int:
    """Per token: a norm's input and output; unfused RMSNorm keeps the normalised input too."""
    kept = 3 if load.model.norm is Norm.rmsnorm and load.device == "cpu" else 2
    return kept * load.model.hidden_size * dtype_bytes(load.precision)


def _mask_bytes(load: RankLoad) -> int:
    """Per token: one dropout mask over the hidden size."""
    if load.model.dropout == 0:
        return 0
    return load.model.hidden_size * (dtype_bytes(load.precision) if load.device == "cpu" else 1)


def logits_bytes(load: RankLoad) -> int:
    """Logits and their gradient in compute type, and the chunk of them that the loss holds in fp32."""
    elements = load.micro_batch_size * load.seq_len * (load.model.vocab_size or 0)
    return 2 * elements * dtype_bytes(load.precision) + min(LOSS_CHUNK_BYTES, 2 * FP32_BYTES * elements)


def buffer_bytes(load: RankLoad, parameters: int, buckets: Buckets) -> int:
    """Communication buckets; at stage 3 also the parameters gathered at a time."""
    width = dtype_bytes(load.precision)
    if load.zero_stage == 0:
        return min(parameters, MAX_BUCKET_ELEMENTS) * width
    # With overlap one bucket fills while the other is on its way.
    elements = buckets.reduce * (2 if load.device == "cuda" else 1)
    if load.zero_stage == 3:
        elements += min(parameters, MAX_LIVE_PARAMETERS)
    return elements * width


def rank_memory(load: RankLoad) -> RankMemory:
    """Peak bytes of one rank."""
    sizes = [prod(shape) for shape in parameter_shapes(load.model).values()]
    parameters = sum(sizes)
    buckets = buckets_for(parameters, load.bucket_elements)
    states = state_bytes(
        parameters,
        zero_stage=load.zero_stage,
        world_size=load.world_size,
        precision=load.precision,
        moments=load.moments,
        offload=load.offload,
    )
    return RankMemory(
        parameters=states.parameters,
        gradients=states.gradients,
        optimizer=states.optimizer,
        activations=activation_bytes(load),
        logits=logits_bytes(load),
        buffers=buffer_bytes(load, parameters, buckets),
        host=states.host,
    )


def memory_by_stage(load: RankLoad) -> dict[int, RankMemory]:
    """The same load at each ZeRO stage; stage 0 offloads nothing, only stage 3 offloads parameters."""
    return {stage: rank_memory(replace(load, zero_stage=stage)) for stage in STAGES}


def held_bytes(memory: RankMemory, device: str) -> int:
    """What counts against a rank's limit: on a CPU what is offloaded stays in the same memory."""
    return memory.device_total + (memory.host if device == "cpu" else 0)


def fillable_bytes(limit_bytes: int, device: str) -> int:
    """What a rank that has `limit_bytes` may fill."""
    return int(limit_bytes * HEADROOM) if device == "cuda" else limit_bytes


def fillable_words(limit_bytes: int, device: str) -> str:
    """`a rank has 4.0 GB`, and on a GPU `73.6 GB of its 80.0 GB may be filled (...)`."""
    if device != "cuda":
        return f"a rank has {gigabytes(limit_bytes)}"
    fillable = gigabytes(fillable_bytes(limit_bytes, device))
    assumed = f"{gigabytes(limit_bytes - fillable_bytes(limit_bytes, device))} assumed for {ASSUMED_FOR}"
    return f"{fillable} of its {gigabytes(limit_bytes)} may be filled ({assumed})"


def memory_problem(load: RankLoad, limit_bytes: int, global_batch_size: int) -> str | None:
    """None if the load fits a rank that has `limit_bytes`, else one sentence with the numbers and the nearest change
    that fits."""
    needed, fillable = held_bytes(rank_memory(load), load.device), fillable_bytes(limit_bytes, load.device)
    if needed <= fillable:
        return None
    found = f"parallel.zero_stage={load.zero_stage} with train.micro_batch_size={load.micro_batch_size}"
    head = f"{found} needs {gigabytes(needed)} per rank, {fillable_words(limit_bytes, load.device)}"
    for change, candidate in _nearby(load, global_batch_size):
        total = held_bytes(rank_memory(candidate), load.device)
        if total <= fillable:
            way_out = " ".join(f"{key}={value}" for key, value in change.items())
            return f"{head}; {way_out} needs {gigabytes(total)}"
    return (
        f"{head}; no ZeRO stage, micro-batch or offload fits on {load.world_size} workers: use more "
        "workers (cluster.num_workers), a smaller model or a shorter train.seq_len"
    )


def gigabytes(number: int) -> str:
    """Decimal: 80,000,000,000 is 80 GB; small numbers keep three digits."""
    return f"{number / 1e9:,.1f} GB" if number >= 1e9 else f"{number / 1e6:,.1f} MB"


def _nearby(load: RankLoad, global_batch_size: int) -> Iterator[tuple[Mapping[str, str], RankLoad]]:
    """Changes from cheap to dear: a higher stage, a smaller micro-batch, recomputation, offload."""
    first = max(1, load.zero_stage)
    stages = range(load.zero_stage, 4) if load.zero_stage > 0 else (0, 1, 2, 3)
    per_rank = global_batch_size // load.world_size
    smaller = [m for m in range(load.micro_batch_size - 1, 0, -1) if per_rank % m == 0]
    for is_checkpointed in sorted({load.activation_checkpointing, True}):
        for micro_batch_size in (load.micro_batch_size, *smaller):
            for stage in stages:
                yield _changed(load, stage, micro_batch_size, is_checkpointed, load.offload)
    for offload in (Offload.optimizer, Offload.params):
        for micro_batch_size in (load.micro_batch_size, *smaller):
            for stage in range(3 if offload is Offload.params else first, 4):
                yield _changed(load, stage, micro_batch_size, True, offload)


def _changed(
    load: RankLoad, stage: int, micro_batch_size: int, is_checkpointed: bool, offload: Offload
) -> tuple[Mapping[str, str], RankLoad]:
    candidate = replace(
        load,
        zero_stage=stage,
        micro_batch_size=micro_batch_size,
        activation_checkpointing=is_checkpointed,
        offload=offload,
    )
    change = {}
    if stage != load.zero_stage:
        change["parallel.zero_stage"] = str(stage)
    if micro_batch_size != load.micro_batch_size:
        change["train.micro_batch_size"] = str(micro_batch_size)
    if is_checkpointed != load.activation_checkpointing:
        change["parallel.activation_checkpointing"] = "true"
    if offload is not load.offload:
        change["parallel.offload"] = offload.value
    return change, candidate

"""The training engine: a Transformer under DeepSpeed ZeRO. The only file that imports deepspeed.

One `Engine` serves one rank of one attempt; a new attempt is a new process with a new engine, so nothing here
is ever torn down or built twice.
"""

import contextlib
import functools
import hashlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import deepspeed
import numpy as np
import torch
import xxhash
from torch import distributed as dist

from model import partition
from model.checksum import checksum
from model.collectives import Around, observe_collectives
from model.config import ModelConfig
from model.initial import initial_value
from model.objective import token_losses_sum
from model.optimizer import OptimizerSettings, build_optimizer, parameter_groups
from model.partition import Fragment, StatePart
from model.rehearsal import rehearse_pass
from model.transformer import Transformer, document_ids

Fetch = Callable[[str, str, int, int], np.ndarray]
"""(logical tensor, kind, start, count) -> float32 [count]."""


def prewarm() -> None:
    """Import what the first `deepspeed.initialize` and step would import lazily (2 to 7 s), and nothing more:
    no CUDA context, no thread, so that the process can still be forked."""
    with _compiling_nothing():  # DeepSpeed asks of every optimizer whether it is Muon, whose functions are compiled
        import deepspeed.runtime.zero.muon.muon_optimizer
    import cpuinfo  # noqa: F401
    import deepspeed.comm.mori
    import deepspeed.module_inject.auto_ep_layer
    import deepspeed.module_inject.auto_ep_presets
    import deepspeed.runtime.superoffload.superoffload_stage3
    import deepspeed.runtime.zero.stage3
    import deepspeed.utils.pin_memory  # noqa: F401
    import numpy.ma  # noqa: F401
    import torch._dynamo
    import torch._subclasses.schema_check_mode
    import torch.profiler._cupti_monitor

    torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=1e-3)


@contextlib.contextmanager
def _compiling_nothing() -> Iterator[None]:
    """What is imported inside is not compiled when it is called: it spares the import of the compiler, a second."""
    compile_function = torch.compile
    torch.compile = lambda function=None, **_: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = compile_function


def _calm_deepspeed() -> None:
    """The shared-memory collective is inference's, takes a 30 s build and leaks /dev/shm; py-cpuinfo starts
    three processes for each CPUAdam."""
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    import cpuinfo

    cpuinfo.get_cpu_info = functools.lru_cache(None)(cpuinfo.get_cpu_info)
    warnings.filterwarnings("ignore", category=FutureWarning, module="deepspeed|torch")


def cuda_problem() -> str | None:
    """Why this process can't use CUDA, None if it can. A failed initialisation stays failed: ask in a fork."""
    try:
        torch.zeros(1, device="cuda")
    except (RuntimeError, AssertionError) as error:
        return str(error).splitlines()[0]
    return None


def join_process_group(
    *,
    device: str,
    store_host: str,
    store_port: int,
    prefix: str,
    rank: int,
    world_size: int,
    timeout_s: float,
    around_collectives: Around = contextlib.nullcontext,
) -> None:
    """Join the attempt's group through the agent's store; `timeout_s` reaches DeepSpeed's own groups too.

    From then on every collective of DeepSpeed's is called inside `around_collectives()`.
    """
    _calm_deepspeed()
    timeout = timedelta(seconds=timeout_s)
    dist.distributed_c10d.default_pg_timeout = timeout
    store = dist.TCPStore(store_host, store_port, is_master=False, timeout=timeout)
    backend = "nccl" if device == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=dist.PrefixStore(prefix, store), rank=rank, world_size=world_size, timeout=timeout
    )
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    observe_collectives(deepspeed.comm.comm.cdb, around_collectives)


class MicroBatch(Protocol):
    """Rows of one forward pass: tokens int64 [B, T + 1], weights float32 [B] (0 for padding rows)."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray: ...


@dataclass(frozen=True, slots=True)
class StepResult:
    loss_sum: float
    """Sum of this rank's weighted token losses, in nats."""
    grad_norm: float
    """Global gradient norm before clipping."""
    rng_digest: int
    """Sum, over this rank's micro-batches, of xxh3_64 of the generator's state after each: what was drawn."""
    is_scaled_down: bool
    """fp16 only: gradients overflowed, the update was left out, and the loss scale is lowered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    model: ModelConfig
    optimizer: OptimizerSettings
    ds_config: dict[str, Any]
    zero_stage: int
    device: str
    """`cpu` or `cuda:N`."""
    seed: int
    tokens_per_step: int
    """Target tokens of the global batch: the summed loss is divided by it."""
    activation_checkpointing: bool
    eos_token_id: int | None
    """Set where documents are isolated from each other."""


class Engine:
    def __init__(self, settings: EngineSettings, *, is_restored: bool) -> None:
        """Build model, optimizer and engine; `is_restored` leaves the weights unset: `restore` follows."""
        self.settings = settings
        self._device = torch.device(settings.device)
        model = self._build_model(is_restored)
        groups = parameter_groups(
            ((p, tuple(getattr(p, "ds_shape", p.shape))) for p in model.parameters()), settings.optimizer
        )
        self._engine = deepspeed.initialize(
            model=model,
            optimizer=build_optimizer(groups, settings.optimizer),
            config=settings.ds_config,
            dist_init_required=False,
        )[0]
        self._micro_steps: int = self._engine.gradient_accumulation_steps()
        self._updates = 0
        """Since the moments were zero: Adam corrects them by it. Fewer than steps where fp16's scaler left
        some out, or where the run started from a later step's weights alone."""

    def _build_model(self, is_restored: bool) -> Transformer:
        settings = self.settings
        with deepspeed.zero.Init(
            config_dict_or_path=settings.ds_config,
            enabled=settings.zero_stage == 3,
        ):
            model = Transformer(settings.model, activation_checkpointing=settings.activation_checkpointing)
        if not is_restored:
            self._set_initial_weights(model)
        return model

    @torch.no_grad()
    def _set_initial_weights(self, model: Transformer) -> None:
        for name, parameter in model.named_parameters():
            shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
            value = initial_value(name, shape, self.settings.model, self.settings.seed).view(-1)
            own = getattr(parameter, "ds_tensor", None)
            if own is None:
                parameter.view(-1).copy_(value)
            else:
                start = dist.get_rank() * own.numel()
                part = value[start : start + own.numel()]
                own.zero_()
                own[: part.numel()].copy_(part)

    def rehearse(self, rows: int, seq_len: int) -> None:
        """Before `restore`: have done for the first time what a first step does for the first time.

        The engine's counts and gradients stay as they are. At stage 3 only the moments are made: no rank has room for
        a whole model.
        """
        self._create_moments()
        self._count_updates(0)
        if self.settings.zero_stage < 3:
            model = Transformer(self.settings.model, activation_checkpointing=self.settings.activation_checkpointing)
            dtype = next(self._engine.module.parameters()).dtype
            rehearse_pass(model.to(self._device, dtype), rows, seq_len)

    def train_step(
        self,
        step: int,
        micro_batches: Sequence[MicroBatch],
        lr: float,
        before_update: Callable[[float], None],
        on_micro_step: Callable[[int], None] = lambda index: None,
    ) -> StepResult:
        """One optimizer step. `step` (0-based) and the micro-batch's place in the global batch seed dropout,
        so the masks depend on neither the attempt nor the world size.

        `before_update` is called once, between the last backward pass and the update, with `loss_sum`: until then the
        masters and moments are those of the step before. `on_micro_step` is called as each forward pass begins.
        """
        engine, world_size = self._engine, dist.get_world_size()
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        engine.train()
        scale = world_size * self._micro_steps / self.settings.tokens_per_step
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        grad_norm, rng_digest = None, 0
        for index, micro_batch in enumerate(micro_batches):
            on_micro_step(index)
            place = index * world_size + dist.get_rank()
            self._seed(_stream_seed(self.settings.seed, step, place))
            loss = self._losses_sum(micro_batch)
            loss_sum += loss.detach()
            engine.backward(loss * scale)
            rng_digest += self._rng_digest()
            if engine.is_gradient_accumulation_boundary():
                if self.settings.zero_stage == 0:
                    grad_norm = self._replicated_grad_norm()
                before_update(float(loss_sum))
            engine.step()
        if grad_norm is None:
            grad_norm = engine.get_global_grad_norm()
        is_scaled_down = engine.fp16_enabled() and not engine.was_step_applied()
        self._updates += not is_scaled_down
        return StepResult(
            loss_sum=float(loss_sum),
            grad_norm=float(grad_norm),
            rng_digest=rng_digest,
            is_scaled_down=is_scaled_down,
        )

    def _losses_sum(self, micro_batch: MicroBatch) -> torch.Tensor:
        tokens = torch.from_numpy(micro_batch.tokens).to(self._device)
        weights = torch.from_numpy(micro_batch.weights).to(self._device)
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        documents = None
        if self.settings.eos_token_id is not None:
            documents = document_ids(inputs, self.settings.eos_token_id)
        return token_losses_sum(self._engine(inputs, documents), targets, weights)

    def _seed(self, seed: int) -> None:
        """As `torch.manual_seed` does for the CPU and this device; for every other kind of device that would format
        the stack, at each micro-step."""
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _rng_digest(self) -> int:
        is_cuda = self._device.type == "cuda"
        state = torch.cuda.get_rng_state(self._device) if is_cuda else torch.get_rng_state()
        return xxhash.xxh3_64_intdigest(state.numpy())

    def _replicated_grad_norm(self) -> torch.Tensor:
        grads = [p.grad for p in self._engine.module.parameters() if p.grad is not None]
        return torch.nn.utils.get_total_norm(grads)

    @torch.no_grad()
    def evaluate(
        self, micro_batches: Sequence[MicroBatch], on_micro_step: Callable[[int], None] = lambda index: None
    ) -> float:
        """Sum of this rank's weighted token losses, in nats; every rank makes the same number of passes."""
        self._engine.eval()
        loss_sum = 0.0
        for index, micro_batch in enumerate(micro_batches):
            on_micro_step(index)
            loss_sum += float(self._losses_sum(micro_batch))
        return loss_sum

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        return partition.base_optimizer(self._engine)

    def state_parts(self) -> list[StatePart]:
        """Everything of the optimizer on this rank, as flat views that hold until the next update.

        Call after the first step or `restore`: a fresh optimizer has no moments. The views are made anew each time,
        because DeepSpeed may replace a tensor's memory.
        """
        return partition.state_parts(self._leaves, self._optimizer, self.settings.optimizer.moments)

    def planned_parts(self) -> list[StatePart]:
        """The layout of `state_parts`, before the first step too: its values are not the moments'."""
        return partition.planned_parts(self._leaves, self.settings.optimizer.moments)

    @functools.cached_property
    def _leaves(self) -> list[tuple[torch.Tensor, tuple[Fragment, ...]]]:
        return partition.fragments_by_leaf(self._engine)

    def state_checksum(self) -> int:
        """64 bits over every bit of `state_parts`; ranks hold different parts."""
        return checksum([part.values for part in self.state_parts()])

    def replica_checksum(self) -> int:
        """64 bits over what the model computes with, which every rank holds alike; not at stage 3."""
        return checksum([parameter.data for parameter in self._engine.module.parameters()])

    @property
    def is_replicated(self) -> bool:
        """Every rank holds the whole state (stage 0)."""
        return partition.flavour(self._engine) is partition.Flavour.replicated

    @torch.no_grad()
    def restore(self, fetch: Fetch, step: int, counters: dict[str, Any]) -> None:
        """Write a checkpoint's state, saved by any world at any stage, into this rank's partitions.

        Each rank fetches its own ranges only; the weights are then gathered as after a step (collective).
        """
        optimizer = self._optimizer
        self._create_moments()
        for fragment in partition.cut(partition.fragments(self._engine)):
            for kind in ("master", *self.settings.optimizer.moments):
                target = fragment.master if kind == "master" else fragment.moment(optimizer, kind)
                assert target is not None
                values = fetch(fragment.name, kind, fragment.start, fragment.count)
                target.copy_(torch.from_numpy(values))
        partition.refresh_model_parameters(self._engine)
        self._restore_counters(counters, step)

    @torch.no_grad()
    def restore_parts(
        self, load: Callable[[Sequence[StatePart]], None], step: int, counters: Callable[[], dict[str, Any]]
    ) -> None:
        """Like `restore`, where an engine of the same layout kept a copy of its `state_parts`: `load` fills them with
        it, and `counters` is asked for the rest once it has."""
        self._create_moments()
        load(self.state_parts())
        partition.refresh_model_parameters(self._engine)
        self._restore_counters(counters(), step)

    def _create_moments(self) -> None:
        """A fresh optimizer has no state before its first step."""
        for leaf, _ in partition.flat_leaves(self._engine):
            state = self._optimizer.state[leaf]
            for kind in self.settings.optimizer.moments:
                if partition.MOMENTS[kind] not in state:
                    state[partition.MOMENTS[kind]] = torch.zeros_like(leaf, memory_format=torch.preserve_format)

    def _count_updates(self, updates: int) -> None:
        """Torch keeps them as a 0-dim float32 beside each leaf's moments."""
        self._updates = updates
        if self.settings.optimizer.name != "sgd":
            for leaf, _ in partition.flat_leaves(self._engine):
                count = torch.tensor(float(updates), dtype=torch.float32, device=leaf.device)
                self._optimizer.state[leaf]["step"] = count

    def counters(self) -> dict[str, Any]:
        """What a checkpoint holds beside tensors: the engine's counts and the loss scaler."""
        engine = self._engine
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        return {
            "global_samples": engine.global_samples,
            "skipped_steps": engine.skipped_steps,
            "updates": self._updates,
            "loss_scaler": {
                key: value
                for key, value in (vars(scaler) if scaler is not None else {}).items()
                if isinstance(value, int | float | bool)
            },
        }

    def _restore_counters(self, counters: dict[str, Any], step: int) -> None:
        engine = self._engine
        engine.global_steps = step
        engine.micro_steps = step * self._micro_steps
        engine.global_samples = counters.get("global_samples", 0)
        engine.skipped_steps = counters.get("skipped_steps", 0)
        self._count_updates(counters.get("updates", step - engine.skipped_steps))
        scaler = getattr(engine.optimizer, "loss_scaler", None)
        for key, value in counters.get("loss_scaler", {}).items():
            if scaler is not None and key in vars(scaler):
                setattr(scaler, key, value)


def _stream_seed(seed: int, step: int, place: int) -> int:
    """63 bits from (seed, step, place of the micro-batch in the global batch)."""
    words = np.array([seed, step, place], dtype="<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little") >> 1

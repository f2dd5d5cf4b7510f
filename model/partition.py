"""Where each rank's share of the training state lives inside a DeepSpeed engine.

A ZeRO partition is a flat fp32 buffer that holds ranges of many logical tensors. `fragments` names those
ranges, for every stage, without any communication; the tensors are views into the engine's own memory, so
writing to them restores it. Only attribute names of DeepSpeed 0.19 are known here; the library itself is
imported in `engine.py` alone.

`param._hp_mapping` is not used: with round-robin gradients it names the wrong ranges.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import distributed as dist

MOMENTS = {"exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "momentum": "momentum_buffer"}
"""Kind in a checkpoint -> key in the torch optimizer's state."""


FETCH_ELEMENTS = 4 << 20
"""Most that is restored at once: it takes no more memory than a rank's share and 16 MiB."""


class Flavour(StrEnum):
    """How the engine keeps its fp32 masters."""

    replicated = "replicated"
    """Stage 0 in fp32: the model's parameters are the masters, every rank holds all."""
    flat = "flat"
    """Stages 1 and 2: one flat fp32 partition per parameter group."""
    parameters = "parameters"
    """Stage 3: one flat fp32 partition per sub-group, cut parameter by parameter."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """Elements [start, start + count) of the logical tensor `name`, as they lie on this rank."""

    name: str
    shape: tuple[int, ...]
    start: int
    count: int
    flat: torch.Tensor
    """The optimizer's own leaf (a key of its state)."""
    flat_start: int
    group: int

    @property
    def master(self) -> torch.Tensor:
        """float32 [count], a view."""
        return self.flat.data.view(-1).narrow(0, self.flat_start, self.count)

    def moment(self, optimizer: torch.optim.Optimizer, kind: str) -> torch.Tensor | None:
        """float32 [count], a view; None where the optimizer has no such moment (yet)."""
        state = optimizer.state.get(self.flat, {}).get(MOMENTS[kind])
        return None if state is None else state.view(-1).narrow(0, self.flat_start, self.count)


def cut(fragments: Iterable[Fragment]) -> Iterator[Fragment]:
    """The same elements, in fragments of at most FETCH_ELEMENTS."""
    for fragment in fragments:
        for first in range(0, fragment.count, FETCH_ELEMENTS):
            count = min(FETCH_ELEMENTS, fragment.count - first)
            at = {"start": fragment.start + first, "flat_start": fragment.flat_start + first}
            yield replace(fragment, count=count, **at)


@dataclass(frozen=True, slots=True)
class StatePart:
    """One flat float32 tensor of the optimizer and what it holds: `values[f.flat_start:][:f.count]` for each."""

    kind: str
    values: torch.Tensor
    fragments: tuple[Fragment, ...]


def flavour(engine: Any) -> Flavour:
    optimizer_class = type(engine.optimizer).__name__
    if optimizer_class == "DeepSpeedZeroOptimizer":
        return Flavour.flat
    if "Stage3" in optimizer_class:
        return Flavour.parameters
    if isinstance(engine.optimizer, torch.optim.Optimizer):
        return Flavour.replicated
    raise NotImplementedError(f"DeepSpeed chose {optimizer_class}, whose partitions are not known here")


def base_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer that makes the update."""
    optimizer = engine.optimizer
    return optimizer if flavour(engine) is Flavour.replicated else optimizer.optimizer


def flat_leaves(engine: Any) -> list[tuple[torch.Tensor, int]]:
    """(leaf, parameter group) of every optimizer leaf on this rank, also those that hold only padding."""
    optimizer = engine.optimizer
    match flavour(engine):
        case Flavour.flat:
            return [(leaf, group) for group, leaf in enumerate(optimizer.single_partition_of_fp32_groups)]
        case Flavour.parameters:
            groups = optimizer.sub_group_to_group_id
            return [(leaf, groups[sub]) for sub, leaf in enumerate(optimizer.fp32_partitioned_groups_flat)]
        case Flavour.replicated:
            return [(leaf, index) for index, group in enumerate(optimizer.param_groups) for leaf in group["params"]]


def fragments(engine: Any) -> Iterator[Fragment]:
    """Every range of every logical tensor that this rank holds (all of them, at stage 0)."""
    match flavour(engine):
        case Flavour.flat:
            yield from _flat_fragments(engine)
        case Flavour.parameters:
            yield from _parameter_fragments(engine)
        case Flavour.replicated:
            for leaf, group in flat_leaves(engine):
                yield Fragment(engine.param_names[leaf], tuple(leaf.shape), 0, leaf.numel(), leaf, 0, group)


def fragments_by_leaf(engine: Any) -> list[tuple[torch.Tensor, tuple[Fragment, ...]]]:
    """Every optimizer leaf and what lies in it: the same for the life of the engine."""
    by_leaf: dict[int, list[Fragment]] = {}
    for fragment in fragments(engine):
        by_leaf.setdefault(id(fragment.flat), []).append(fragment)
    return [(leaf, tuple(by_leaf.get(id(leaf), ()))) for leaf, _ in flat_leaves(engine)]


def state_parts(
    leaves: Sequence[tuple[torch.Tensor, tuple[Fragment, ...]]],
    optimizer: torch.optim.Optimizer,
    moments: Sequence[str],
) -> list[StatePart]:
    """Each leaf's master and moments as they lie in memory now."""
    parts = []
    for leaf, members in leaves:
        parts.append(StatePart("master", leaf.data.view(-1), members))
        for kind in moments:
            parts.append(StatePart(kind, optimizer.state[leaf][MOMENTS[kind]].view(-1), members))
    return parts


def planned_parts(
    leaves: Sequence[tuple[torch.Tensor, tuple[Fragment, ...]]], moments: Sequence[str]
) -> list[StatePart]:
    """What `state_parts` will be once the optimizer has moments: same kinds, sizes and ranges, but all with the
    master's values."""
    return [StatePart(kind, leaf.data.view(-1), members) for leaf, members in leaves for kind in ("master", *moments)]


def _flat_fragments(engine: Any) -> Iterator[Fragment]:
    optimizer = engine.optimizer
    for group, flat in enumerate(optimizer.single_partition_of_fp32_groups):
        size = optimizer.partition_size[group]
        low = size * dist.get_rank(optimizer.real_dp_process_group[group])
        members = zip(
            optimizer.round_robin_bit16_groups[group], optimizer.round_robin_bit16_offsets[group], strict=True
        )
        for parameter, offset in members:
            start, stop = max(offset, low), min(offset + parameter.numel(), low + size)
            if start < stop:
                yield Fragment(
                    name=engine.param_names[parameter],
                    shape=tuple(parameter.shape),
                    start=start - offset,
                    count=stop - start,
                    flat=flat,
                    flat_start=start - low,
                    group=group,
                )


def _parameter_fragments(engine: Any) -> Iterator[Fragment]:
    optimizer = engine.optimizer
    for sub_group, members in enumerate(optimizer.fp16_groups):
        for parameter in members:
            _, flat_start, padded = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = optimizer._get_param_partition_rank(parameter) * padded
            count = max(0, min(parameter.ds_numel - start, padded))
            if count:
                yield Fragment(
                    name=engine.param_names[parameter],
                    shape=tuple(parameter.ds_shape),
                    start=start,
                    count=count,
                    flat=optimizer.fp32_partitioned_groups_flat[sub_group],
                    flat_start=flat_start,
                    group=optimizer.sub_group_to_group_id[sub_group],
                )


def refresh_model_parameters(engine: Any) -> None:
    """Rebuild the weights the model computes with from the masters just written (collective: all ranks)."""
    optimizer = engine.optimizer
    match flavour(engine):
        case Flavour.flat:
            optimizer._hp_optimizer_states_linked = False
            optimizer.update_lp_params()
        case Flavour.parameters:
            for low, master in zip(
                optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True
            ):
                if low is not None and low.data_ptr() != master.data_ptr():
                    low.data.copy_(master.data)
            _drop_stale_gathers(optimizer.module)
        case Flavour.replicated:
            pass


def _drop_stale_gathers(module: torch.nn.Module) -> None:
    """Persistent parameters keep a gathered copy, made before the restore; the next use gathers them anew."""
    for parameter in module.parameters():
        if parameter.ds_status.name == "AVAILABLE":  # type: ignore[attr-defined]
            parameter.partition(has_been_updated=False)  # type: ignore[attr-defined]

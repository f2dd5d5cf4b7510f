"""Reads a folder that DeepSpeed's own `save_checkpoint` wrote (ZeRO stage 1, 2 or 3): masters and moments by name.

The files are pickles. They are only ever loaded with `weights_only=True`, which builds tensors and plain values and
runs nothing; DeepSpeed's few classes in them become inert stand-ins, any other class is refused. Tensors stay mapped,
so memory is what is asked for. Attribute names are those of DeepSpeed 0.19.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from orchestrator.errors import CheckpointError, ConfigError

MOMENTS = ("exp_avg", "exp_avg_sq", "momentum")
_THEIR_MOMENT = {"momentum": "momentum_buffer"}
_OPTIMIZER_FILE = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_MODEL_FILES = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt")
_HARMLESS = (
    "deepspeed.runtime.fp16.loss_scaler.LossScaler",
    "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
    "deepspeed.runtime.zero.config.ZeroStageEnum",
    "deepspeed.utils.tensor_fragment.fragment_address",
)


class _Inert:
    """Stands in for a class of DeepSpeed's: keeps what it is given and does nothing."""

    def __init__(self, *values: Any) -> None:
        self.values = values


@dataclass(frozen=True, slots=True)
class _Part:
    """Elements [start, start + count) of one flat buffer, in the order of the tensor's own elements."""

    rank: int
    group: int
    start: int
    count: int


class DeepSpeedFolder:
    """Raises ConfigError where the folder is not one that can be read, CheckpointError where it is damaged."""

    def __init__(self, folder: Path) -> None:
        self.path = _tag_folder(folder)
        files = self._optimizer_files()
        model = _load(next(self.path / name for name in _MODEL_FILES if (self.path / name).is_file()))
        self._refuse_unknown(model, files)
        states = [_load(file)["optimizer_state_dict"] for file in files]
        self.step = int(model["global_steps"])
        self.world_size = len(files)
        self.zero_stage = _stage(states[0])
        is_stage_3 = self.zero_stage == 3
        self._flats = {
            "master": [s["fp32_flat_groups" if is_stage_3 else "single_partition_of_fp32_groups"] for s in states]
        }
        bases = [s["optimizer_state_dict" if is_stage_3 else "base_optimizer_state"] for s in states]
        for kind in MOMENTS:
            found = [_moments(base, _THEIR_MOMENT.get(kind, kind), len(self._flats["master"][0])) for base in bases]
            if all(flats is not None for flats in found):
                self._flats[kind] = found
        groups = [{name: tuple(shape) for name, shape in group.items()} for group in model["param_shapes"]]
        self.shapes = {name: shape for group in groups for name, shape in group.items()}
        self._parts: dict[str, list[_Part]] = {}
        if is_stage_3:
            self._place_parameters()
        else:
            self._place_groups(groups, states[0].get("param_alignment_paddings"))
        for alias, name in dict(model["shared_params"] or {}).items():
            if name in self.shapes:
                self.shapes[alias], self._parts[alias] = self.shapes[name], self._parts[name]

    @property
    def moments(self) -> tuple[str, ...]:
        return tuple(kind for kind in MOMENTS if kind in self._flats)

    def read(self, name: str, kind: str = "master") -> np.ndarray:
        """A whole tensor: float32 [numel]."""
        flats = self._flats[kind]
        try:
            pieces = [flats[p.rank][p.group].reshape(-1)[p.start : p.start + p.count] for p in self._parts[name]]
        except IndexError as error:
            raise CheckpointError(f"{self.path} is damaged: it does not hold all of {name}") from error
        if sum(piece.numel() for piece in pieces) != prod(self.shapes[name]):
            raise CheckpointError(f"{self.path} is damaged: it does not hold all of {name} ({kind})")
        whole = torch.cat([piece.to(torch.float32) for piece in pieces]) if pieces else torch.zeros(0)
        return np.ascontiguousarray(whole.detach().numpy(), "<f4")

    def _optimizer_files(self) -> list[Path]:
        found: dict[int, Path] = {}
        for file in self.path.iterdir():
            match = _OPTIMIZER_FILE.fullmatch(file.name)
            if match and int(match.group(2)) > 0:
                raise ConfigError(
                    f"{file} is of a model that was split over ranks (model parallel), which can't be imported"
                )
            if match:
                found[int(match.group(1))] = file
        if not found or not any((self.path / name).is_file() for name in _MODEL_FILES):
            raise ConfigError(
                f"{self.path} holds no checkpoint of DeepSpeed ZeRO stage 1, 2 or 3: zero_pp_rank_*_optim_states.pt "
                "and mp_rank_00_model_states.pt are needed"
            )
        return [found[rank] for rank in sorted(found)]

    def _refuse_unknown(self, model: dict[str, Any], files: Sequence[Path]) -> None:
        if model.get("frozen_param_shapes"):
            names = ", ".join(list(model["frozen_param_shapes"])[:3])
            raise ConfigError(f"{self.path} has frozen parameters ({names}, ...), which can't be imported")
        if not model.get("param_shapes"):
            raise ConfigError(f"{self.path} does not say which parameters it holds; DeepSpeed 0.4 or later is needed")
        if len(files) != model["dp_world_size"]:
            raise CheckpointError(
                f"{self.path} was saved by {model['dp_world_size']} ranks, the files of {len(files)} are there; "
                "copy the others beside them"
            )

    def _place_groups(self, groups: list[dict[str, tuple[int, ...]]], paddings: list[list[int]] | None) -> None:
        """Stages 1 and 2: a group's parameters lie one after the other, cut into equal partitions."""
        for index, group in enumerate(groups):
            size = self._flats["master"][0][index].numel()
            start = 0
            for place, (name, shape) in enumerate(group.items()):
                self._parts[name] = list(self._cut(index, start, prod(shape), size))
                start += prod(shape) + (paddings[index][place] if paddings else 0)

    def _cut(self, group: int, start: int, count: int, size: int) -> Iterator[_Part]:
        while count:
            rank, inner = (0, start) if self.world_size == 1 else divmod(start, size)
            taken = count if self.world_size == 1 else min(count, size - inner)
            yield _Part(rank, group, inner, taken)
            start, count = start + taken, count - taken

    def _place_parameters(self) -> None:
        """Stage 3: each parameter is cut into equal parts of its own; the last one is padded."""
        group, start = 0, 0
        sizes = [flat.numel() for flat in self._flats["master"][0]]
        for name, shape in self.shapes.items():
            part = -(-prod(shape) // self.world_size)
            while group < len(sizes) - 1 and start + part > sizes[group]:
                group, start = group + 1, 0
            counts = [min(part, max(0, prod(shape) - rank * part)) for rank in range(self.world_size)]
            self._parts[name] = [_Part(rank, group, start, count) for rank, count in enumerate(counts) if count]
            start += part


def is_deepspeed_folder(folder: Path) -> bool:
    return (folder / "latest").is_file() or any(_OPTIMIZER_FILE.fullmatch(file.name) for file in folder.iterdir())


def _tag_folder(folder: Path) -> Path:
    """`folder` is what `save_checkpoint` was given, or one tag's folder in it."""
    latest = folder / "latest"
    if not latest.is_file():
        return folder
    tag = latest.read_text().strip()
    if not tag or "/" in tag or tag in {".", ".."} or not (folder / tag).is_dir():
        raise ConfigError(f"{latest} names {tag!r}, which is not a folder beside it; name the folder to import")
    return folder / tag


def _load(file: Path) -> dict[str, Any]:
    stand_ins: list[Any] = [(_Inert, name) for name in _HARMLESS]
    try:
        with safe_globals(stand_ins):
            return dict(torch.load(file, map_location="cpu", weights_only=True, mmap=True))
    except Exception as error:  # torch's unpickler raises what it likes about bytes that it does not like
        raise CheckpointError(f"{file} was not loaded: {_reason(file, error)}") from error


def _reason(file: Path, error: Exception) -> str:
    try:
        unsafe = sorted(set(get_unsafe_globals_in_checkpoint(file)) - set(_HARMLESS))
    except Exception:
        unsafe = []
    if unsafe:
        return (
            f"it is a pickle that needs {', '.join(unsafe[:5])}, and loading that could run code; save it again "
            "without these objects (client_state)"
        )
    return f"it is damaged or not a file of torch.save ({type(error).__name__}: {str(error).splitlines()[0]})"


def _stage(state: dict[str, Any]) -> int:
    stage = state.get("zero_stage", 2)
    return int(stage.values[0]) if isinstance(stage, _Inert) else int(stage)


def _moments(base: Any, kind: str, groups: int) -> list[torch.Tensor] | None:
    """One flat tensor for each group, None where the optimizer has no such moment."""
    state = base.get("state", {}) if isinstance(base, dict) else {}
    found = [state.get(group, {}).get(kind) for group in range(groups)]
    return [flat for flat in found if flat is not None] if all(flat is not None for flat in found) else None

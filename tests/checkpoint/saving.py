"""Saves made-up states as a run's ranks would: every tensor is cut at random places."""

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.checkpoint.commit import commit
from orchestrator.checkpoint.layout import Extent, step_folder
from orchestrator.checkpoint.marker import DataState, Marker, gather_payloads
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.store import Store

State = dict[str, dict[str, np.ndarray]]
"""name -> kind -> fp32 array of the tensor's full shape."""


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int = 0, frozen: tuple[str, ...] = ()) -> State:
    rng = np.random.default_rng(seed)
    return {
        name: {
            kind: rng.standard_normal(shape).astype(np.float32)
            for kind in (("master",) if name in frozen else ("master", "exp_avg", "exp_avg_sq"))
        }
        for name, shape in shapes.items()
    }


def partition(state: State, world_size: int, rng: random.Random) -> list[list[tuple[Extent, np.ndarray]]]:
    """For each rank its extents: every kind of every tensor is cut at its own random places."""
    by_rank: list[list[tuple[Extent, np.ndarray]]] = [[] for _ in range(world_size)]
    for name, kinds in state.items():
        for kind, array in kinds.items():
            flat = array.reshape(-1)
            cuts = sorted(rng.randint(0, flat.size) for _ in range(rng.randint(0, world_size)))
            bounds = list(dict.fromkeys([0, *cuts, flat.size]))
            pairs = list(itertools.pairwise(bounds)) or [(0, 0)]
            for start, end in pairs:
                extent = Extent(name, kind, array.shape, start, end - start)
                by_rank[rng.randrange(world_size)].append((extent, flat[start:end]))
    return by_rank


def write(
    store: Store,
    step: int,
    state: State,
    *,
    world_size: int = 2,
    seed: int = 0,
    attempt: int = 1,
    **fields: Any,
) -> Marker:
    """Payloads of all ranks, not yet committed; the marker to commit."""
    dealt = partition(state, world_size, random.Random(seed))
    payloads = [
        write_payload(
            store,
            step_folder(step),
            rank,
            attempt,
            dealt[rank],
            {f"rng/{rank}": np.arange(5, dtype=np.uint8)},
        )
        for rank in range(world_size)
    ]
    files, tensors = gather_payloads(payloads)
    return make_marker(step, attempt=attempt, world_size=world_size, files=files, tensors=tensors, **fields)


def save(store: Store, step: int, state: State, **options: Any) -> Marker:
    marker = write(store, step, state, **options)
    commit(store, marker)
    return marker


def make_marker(step: int, **fields: Any) -> Marker:
    known: dict[str, Any] = {
        "run_id": "run-1",
        "fingerprint": "00112233445566aa",
        "identity": {"model.hidden_size": 8, "run.seed": 1, "optim.betas": [0.9, 0.95]},
        "attempt": 1,
        "step": step,
        "world_size": 2,
        "zero_stage": 1,
        "precision": "fp32",
        "time": 1_700_000_000.25,
        "data": DataState(step, (3, 5)),
        "model": {"name": "tiny"},
        "seq_len": 16,
        "data_path": "corpus",
        "tokenizer_xxh3_128": "ab" * 16,
        "files": (),
        "tensors": {},
        "loss": 2.5,
    }
    return Marker(**{**known, **fields})


def flip_byte(path: Path, position: int, mask: int = 0xFF) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ mask]))

"""Where a run without checkpoints of its own starts, and what can be refused about its start before anything runs."""

import contextlib

from model.config import ModelConfig
from model.sizing import shape_problems
from orchestrator.checkpoint.commit import committed_steps
from orchestrator.checkpoint.key import key_to_read, key_to_write
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.marker import Marker
from orchestrator.checkpoint.reader import read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify
from orchestrator.config import CheckpointConfig
from orchestrator.errors import CheckpointError, CheckpointMismatchError, StoreError
from orchestrator.spec import ResumePoint


def check_start(config: CheckpointConfig, model: ModelConfig, url: str) -> None:
    """Refuse a missing or wrong key, and an init_from that does not fit the model.

    Raises CheckpointKeyError or CheckpointMismatchError. A store that does not answer is not this function's
    business, nor is what it holds beyond the newest marker: the controller verifies that.
    """
    if config.encrypt:
        key_to_write(config.key_file)
    with contextlib.suppress(StoreError):
        store = Store(url)
        steps = committed_steps(store)
        if not steps and config.init_from is not None:
            _initial_marker(config.init_from, model, config.key_file)
        if steps:
            _check_key(store, steps[-1], config.key_file)


def initial_point(config: CheckpointConfig, model: ModelConfig) -> ResumePoint:
    """checkpoint.init_from, every byte of it verified, else the seeded initial weights. Raises CheckpointError.

    It may be somebody else's, so a damaged one is not set aside, and no older one is taken in its place.
    """
    if config.init_from is None:
        return ResumePoint()
    marker = _initial_marker(config.init_from, model, config.key_file)
    store = Store(config.init_from)
    if problems := verify(store, marker.step):
        raise CheckpointError(
            f"checkpoint.init_from={config.init_from} is damaged: {'; '.join(problems)}; import it again"
        )
    return ResumePoint(
        step=marker.step,
        source="disk" if store.is_local else "remote",
        checkpoint=store.url_of(step_folder(marker.step)),
        is_initial=True,
    )


def _initial_marker(url: str, model: ModelConfig, key_file: str | None) -> Marker:
    """Of the newest checkpoint in `url`; only shapes must fit: data, seed and schedule are the new run's own."""
    store = Store(url)
    steps = committed_steps(store)
    if not steps:
        raise CheckpointMismatchError(
            f"checkpoint.init_from={url} holds no committed checkpoint; name the folder that "
            "phalanx ckpt import wrote"
        )
    marker = read_marker(store, steps[-1])
    shapes = {name: entry.shape for name, entry in marker.tensors.items()}
    if problems := shape_problems(model, shapes):
        raise CheckpointMismatchError(
            *(f"checkpoint.init_from={url} does not fit the run's model: {problem}" for problem in problems)
        )
    _check_key(store, marker.step, key_file)
    return marker


def _check_key(store: Store, step: int, key_file: str | None) -> None:
    try:
        marker = read_marker(store, step)
    except StoreError:
        raise
    except CheckpointError:
        return  # damaged: the controller sets it aside
    if marker.encryption is not None:
        key_to_read(marker.encryption, key_file, store.where(step_folder(step)))

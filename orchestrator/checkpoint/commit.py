"""Commits, walks back and prunes. Without its marker a checkpoint does not exist."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.checkpoint.fencing import Claim, refuse_if_fenced
from orchestrator.checkpoint.layout import MARKER, REJECTED, attempt_of, step_folder, step_of
from orchestrator.checkpoint.lineage import WHOLE, Lineage
from orchestrator.checkpoint.marker import Marker, coverage_problems
from orchestrator.checkpoint.reader import read_marker
from orchestrator.checkpoint.retention import MetricOf, Retention, checkpoints_to_delete
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import size_problem, verify
from orchestrator.errors import CheckpointError, CheckpointMismatchError, FencedError, StoreError

_MAX_PROBLEMS_NAMED = 3


class Standing(StrEnum):
    committed = "committed"
    rejected = "rejected"
    """Set aside for good: it failed verification, or a rollback left it behind. Kept for a person to look at."""
    torn = "torn"
    """Without a marker: a save that is under way or was cut off. Does not exist for anybody who loads."""


@dataclass(frozen=True, slots=True)
class StepStanding:
    step: int
    standing: Standing
    reason: str = ""
    """Why it was rejected."""


def commit(store: Store, marker: Marker, claim: Claim | None = None) -> None:
    """Write COMMITTED.json: from here on the checkpoint exists. Every rank's payload must be durable before.

    The name is claimed by exclusive create. The marker of an older attempt is replaced and kept beside it,
    that of an equal or newer one refuses us; the same content again does nothing. Raises CheckpointError;
    FencedError where a newer attempt has claimed the store, for this step or any other (see `fencing`).
    """
    problems = coverage_problems(marker)
    problems += [problem for file in marker.files if (problem := size_problem(store, marker.step, file))]
    folder = step_folder(marker.step)
    if problems:
        raise CheckpointError(f"{store.where(folder)} can't be committed: {_listed(problems)}")
    path, data = f"{folder}/{MARKER}", marker.to_json().encode()
    refuse_if_fenced(store, marker.attempt, claim)
    if store.create_exclusive(path, data):
        return
    present = store.read(path)
    if present == data and not _is_rejected(store, marker.step):
        return
    _refuse_unless_newer(store, marker, path)
    kept = f"{folder}/superseded_{hashlib.sha256(present).hexdigest()[:8]}.json"
    store.write_atomic(kept, [present])
    store.write_atomic(path, [data])


def step_standings(store: Store, lineage: Lineage = WHOLE) -> list[StepStanding]:
    """Every checkpoint folder by rising step: committed, rejected or torn. Reads no payload.

    What `lineage` has left behind is rejected, whether or not that is written beside it already.
    """
    standings = []
    for name in store.list():
        step = step_of(name)
        files = store.list(name) if step is not None else []
        if step is None or not files:
            continue
        if MARKER not in files:
            standings.append(StepStanding(step, Standing.torn))
            continue
        reason = _rejection(store, step) if REJECTED in files else None
        reason = reason or _left_behind(store, step, lineage)
        standing = Standing.committed if reason is None else Standing.rejected
        standings.append(StepStanding(step, standing, reason or ""))
    return sorted(standings, key=lambda item: item.step)


def committed_steps(store: Store, lineage: Lineage = WHOLE) -> list[int]:
    """Steps that have a marker, were not set aside and not left behind, rising."""
    return [item.step for item in step_standings(store, lineage) if item.standing is Standing.committed]


def newest_valid(
    store: Store,
    fingerprint: str | None,
    on_reject: Callable[[int, str], None],
    identity: Mapping[str, Any] | None = None,
    *,
    lineage: Lineage = WHOLE,
    above: int = -1,
    max_step: int | None = None,
) -> Marker | None:
    """The newest committed checkpoint (beyond `above`, up to `max_step`) of which every byte verifies, None where
    there is none.

    A bad one is set aside for good and told to `on_reject(step, reason)`, and the next older one is taken.
    `fingerprint=None` takes any run's; another fingerprint raises CheckpointMismatchError, with both values
    of each key of `identity` that differs. StoreError where the store does not answer: nothing is set aside.
    """
    for step in reversed(committed_steps(store, lineage)):
        if step <= above:
            return None
        if max_step is not None and step > max_step:
            continue
        try:
            marker = read_marker(store, step)
        except StoreError:
            raise
        except CheckpointError as error:
            _reject(store, step, str(error), on_reject)
            continue
        if fingerprint is not None:
            _check_same_run(store, marker, fingerprint, identity)
        problems = verify(store, step, marker)
        if not problems:
            return marker
        _reject(store, step, _listed(problems), on_reject)
    return None


def _reject(store: Store, step: int, reason: str, on_reject: Callable[[int, str], None]) -> None:
    with suppress(StoreError):  # on a full or read-only store it is found damaged once more, the next time
        set_aside(store, step, reason)
    on_reject(step, reason)


def check_newest_is_ours(store: Store, fingerprint: str, identity: Mapping[str, Any]) -> None:
    """Raise CheckpointMismatchError where the newest checkpoint with a readable marker is another run's.

    Reads markers only and sets nothing aside: for before anything is started.
    """
    for step in reversed(committed_steps(store)):
        try:
            marker = read_marker(store, step)
        except StoreError:
            raise
        except CheckpointError:
            continue
        _check_same_run(store, marker, fingerprint, identity)
        return


def set_aside(store: Store, step: int, reason: str) -> None:
    """Write REJECTED.json beside the marker: never chosen again, never deleted.

    It names the marker's bytes, so that it stops counting when a newer attempt commits the step anew.
    """
    rejection = {"reason": reason, "time": time.time(), "marker_sha256": _marker_hash(store, step)}
    text = json.dumps(rejection, indent=2, sort_keys=True) + "\n"
    store.write_atomic(f"{step_folder(step)}/{REJECTED}", [text.encode()])


def set_aside_left_behind(store: Store, lineage: Lineage) -> list[int]:
    """Write REJECTED.json beside every checkpoint that a rollback has left behind; their steps, rising."""
    steps = []
    for step in committed_steps(store):
        reason = _left_behind(store, step, lineage)
        if reason is not None:
            set_aside(store, step, reason)
            steps.append(step)
    return steps


def steps_to_prune(
    store: Store,
    retention: Retention,
    metric_of: MetricOf | None = None,
    *,
    lineage: Lineage = WHOLE,
    whole: Marker | None = None,
) -> list[int]:
    """What `prune` removes: committed steps that retention gives up, and older attempts' leftovers, rising.

    `metric_of` is what `keep_best` goes by; without it, the loss in each marker. Nothing while no checkpoint that
    stays has all its files: the last good one is never deleted. `whole` is known to have them: it was committed
    just now.
    """
    standings = step_standings(store, lineage)
    committed = [item.step for item in standings if item.standing is Standing.committed]
    doomed = checkpoints_to_delete(committed, retention, metric_of or (lambda step: _loss(store, step)))
    if not doomed and all(item.standing is not Standing.torn for item in standings):
        return []
    staying = (step for step in reversed(committed) if step not in doomed)
    newest = next((m for s in staying if (m := whole if whole and whole.step == s else _whole(store, s))), None)
    if newest is None:
        return []
    torn = [item.step for item in standings if item.standing is Standing.torn and item.step < newest.step]
    return sorted(doomed + [step for step in torn if _is_leftover(store, step, newest.attempt)])


def prune(
    store: Store,
    retention: Retention,
    metric_of: MetricOf | None = None,
    *,
    lineage: Lineage = WHOLE,
    whole: Marker | None = None,
) -> list[int]:
    """Delete what retention gives up, oldest first; the steps deleted.

    The marker goes first: a crash in between leaves a folder that does not exist for anybody who loads, and
    that a later attempt's prune removes. Rejected checkpoints stay.
    """
    steps = steps_to_prune(store, retention, metric_of, lineage=lineage, whole=whole)
    for step in steps:
        store.remove(f"{step_folder(step)}/{MARKER}")
        store.remove(step_folder(step))
    return steps


def _check_same_run(store: Store, marker: Marker, fingerprint: str, identity: Mapping[str, Any] | None) -> None:
    if marker.fingerprint != fingerprint:
        raise CheckpointMismatchError(*_mismatches(store, marker, fingerprint, identity))


def _refuse_unless_newer(store: Store, marker: Marker, path: str) -> None:
    try:
        present = read_marker(store, marker.step)
    except StoreError:
        raise
    except CheckpointError:
        return  # damaged: whoever wrote it, it is nobody's checkpoint
    if present.attempt >= marker.attempt:
        # A newer one has claimed and committed since we looked for its claim.
        kind = FencedError if present.attempt > marker.attempt else CheckpointError
        raise kind(
            f"attempt {marker.attempt} may not commit {store.where(path)}: attempt {present.attempt} of run "
            f"{present.run_id} has; another copy of this run is alive, or was started after this one"
        )


def _is_rejected(store: Store, step: int) -> bool:
    return store.exists(f"{step_folder(step)}/{REJECTED}") and _rejection(store, step) is not None


def _rejection(store: Store, step: int) -> str | None:
    """The reason in REJECTED.json, None where it is about a marker that was replaced since."""
    try:
        raw = json.loads(store.read(f"{step_folder(step)}/{REJECTED}"))
        reason, marker_hash = str(raw["reason"]), raw["marker_sha256"]
    except (ValueError, KeyError, TypeError):
        return "its REJECTED.json can't be read"
    return reason if marker_hash == _marker_hash(store, step) else None


def _left_behind(store: Store, step: int, lineage: Lineage) -> str | None:
    """Why the marker of `step` is not of the newest branch; None where it is, or can't be read."""
    if lineage.is_shared(step):
        return None
    try:
        marker = read_marker(store, step)
    except StoreError:
        raise
    except CheckpointError:
        return None
    if lineage.survives(marker.attempt, step):
        return None
    return f"attempt {marker.attempt} made it of steps that a rollback has left behind"


def _marker_hash(store: Store, step: int) -> str:
    return hashlib.sha256(store.read(f"{step_folder(step)}/{MARKER}")).hexdigest()


def _loss(store: Store, step: int) -> float | None:
    try:
        return read_marker(store, step).loss
    except StoreError:
        raise
    except CheckpointError:
        return None


def _whole(store: Store, step: int) -> Marker | None:
    """The marker, where it reads and every file is there with its size."""
    try:
        marker = read_marker(store, step)
    except StoreError:
        raise
    except CheckpointError:
        return None
    return None if any(size_problem(store, step, file) for file in marker.files) else marker


def _is_leftover(store: Store, step: int, newest_attempt: int) -> bool:
    """Whether nobody can still be writing a torn folder: all in it is of attempts before the newest."""
    names = store.list(step_folder(step))
    attempts = [attempt for name in names if (attempt := attempt_of(name)) is not None]
    return REJECTED not in names and bool(attempts) and max(attempts) < newest_attempt


def _mismatches(store: Store, marker: Marker, fingerprint: str, identity: Mapping[str, Any] | None) -> list[str]:
    where = store.where(step_folder(marker.step))
    way_out = "use the same settings, or another run.id and checkpoint.url"
    # Through JSON, as the marker's values have been: a tuple is a list there.
    ours = json.loads(json.dumps(dict(identity or {})))
    absent = object()
    differing = [
        f"{key}={ours.get(key)!r} does not match the checkpoint {where}, which has "
        f"{marker.identity.get(key)!r}; {way_out}"
        for key in sorted(ours.keys() | marker.identity.keys())
        if identity is not None and ours.get(key, absent) != marker.identity.get(key, absent)
    ]
    return differing or [
        f"this run's fingerprint {fingerprint} does not match the checkpoint {where} of run {marker.run_id}, "
        f"which has {marker.fingerprint}; {way_out}"
    ]


def _listed(problems: list[str]) -> str:
    more = len(problems) - _MAX_PROBLEMS_NAMED
    named = "; ".join(problems[:_MAX_PROBLEMS_NAMED])
    return f"{named}; and {more} more" if more > 0 else named

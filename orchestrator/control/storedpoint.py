"""The newest checkpoint that verifies, in storage or on the nodes' own disks: the start where memory has nothing."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from orchestrator.checkpoint.commit import committed_steps, newest_valid
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.lineage import WHOLE, Lineage
from orchestrator.checkpoint.marker import Marker
from orchestrator.checkpoint.store import Store
from orchestrator.control.disktier import DiskTier, OnReject
from orchestrator.control.initial import initial_point
from orchestrator.control.opening import OpenRun
from orchestrator.errors import StoreError
from orchestrator.spec import ResumePoint


def resume_point(
    run: OpenRun,
    store: Store,
    on_reject: Callable[[int, str], None],
    *,
    lineage: Lineage = WHOLE,
    max_step: int | None = None,
) -> ResumePoint:
    """The newest checkpoint (of `lineage`, up to `max_step`) of which every byte verifies; a damaged one is set aside
    and told to `on_reject`.

    Where the run has none, `checkpoint.init_from`. Raises CheckpointError where the store does not answer or holds
    another run's checkpoints.
    """
    marker = newest_valid(
        store, run.plan.fingerprint, on_reject, run.plan.identity, lineage=lineage, max_step=max_step
    )
    return initial_point(run.config.checkpoint, run.plan.model) if marker is None else _committed_point(store, marker)


@dataclass(frozen=True, slots=True)
class StoredPoint:
    resume: ResumePoint
    committed_step: int
    """Of the newest checkpoint at checkpoint.url; 0 where there is none."""


def stored_point(
    run: OpenRun,
    store: Store,
    disks: DiskTier | None,
    on_reject: OnReject,
    *,
    lineage: Lineage = WHOLE,
    max_step: int | None = None,
    known_committed: int | None = None,
) -> StoredPoint:
    """The newest point that verifies, on the nodes' own disks or at checkpoint.url; of equal ones that on the disks.

    What `lineage` has left behind, or lies after `max_step`, is not looked at. A damaged one is set aside and told to
    `on_reject(step, reason, where)`. `known_committed` is the newest step at checkpoint.url if this driver has seen
    it: then the disks serve also while the store does not answer. Raises CheckpointError as `resume_point`.
    """

    def reject_stored(step: int, reason: str) -> None:
        on_reject(step, reason, store.where(step_folder(step)))

    fingerprint, identity = run.plan.fingerprint, run.plan.identity
    for point in disks.points() if disks is not None else ():
        if not lineage.survives(point.attempt, point.step) or (max_step is not None and point.step > max_step):
            continue
        how = {"lineage": lineage, "above": point.step, "max_step": max_step}
        try:
            newer = newest_valid(store, fingerprint, reject_stored, identity, **how)
            committed = max((s for s in committed_steps(store, lineage) if s <= point.step), default=0)
        except StoreError:
            if known_committed is None or known_committed > point.step:
                raise
            newer, committed = None, known_committed
        if newer is not None:
            return StoredPoint(_committed_point(store, newer), newer.step)
        resume = disks.restorable(point, fingerprint, on_reject)
        if resume is not None:
            return StoredPoint(replace(resume, is_durable=committed == resume.step), committed)
    resume = resume_point(run, store, reject_stored, lineage=lineage, max_step=max_step)
    has_own = resume.checkpoint is not None and not resume.is_initial
    return StoredPoint(resume, resume.step if has_own else 0)


def _committed_point(store: Store, marker: Marker) -> ResumePoint:
    return ResumePoint(
        step=marker.step,
        source="disk" if store.is_local else "remote",
        checkpoint=store.url_of(step_folder(marker.step)),
        skipped_windows=marker.data.skipped_windows,
        branch=marker.branch,
    )

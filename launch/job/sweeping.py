"""What a job's end goes by where its driver is a sweep's: the records of all trials together."""

from collections.abc import Sequence
from typing import Any

from launch.job.ending import committed_step, saves_since
from orchestrator.observe.ledger import read_events
from orchestrator.observe.units import plural
from orchestrator.runfolder import RunFolder
from orchestrator.sweep.folder import SweepFolder


def trial_events(sweep: RunFolder) -> list[list[dict[str, Any]]]:
    """The ledger of each trial that was started."""
    trials = SweepFolder(sweep.path).trials
    return [read_events(RunFolder(path).events) for path in sorted(trials.iterdir())] if trials.is_dir() else []


def saved_steps(trials: Sequence[Sequence[dict[str, Any]]]) -> int:
    """That all trials have saved, together."""
    return sum(map(committed_step, trials))


def saved_words(trials: Sequence[Sequence[dict[str, Any]]], since_s: float) -> str:
    """`saved 3 trials in 9 s`"""
    saved_s = [max(seconds) for events in trials if (seconds := [s for _, s in saves_since(events, since_s)])]
    return f"saved {plural(len(saved_s), 'trial')} in {max(saved_s):.0f} s" if saved_s else "nothing to save"

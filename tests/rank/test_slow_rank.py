"""A real rank that is really slow: stopped and let go again many times a second."""

from pathlib import Path

import pytest
from rank.ranks import Heard, Ranks, open_run
from slowing import slowed

from orchestrator.control.collect import Gathering
from orchestrator.control.stragglers import Straggler, StragglerWatch

pytestmark = pytest.mark.real

WORDS = (
    "train.steps=1000000",
    "train.seq_len=64",
    "train.global_batch_size=32",
    "train.micro_batch_size=8",
    "cluster.num_workers=2",
    "parallel.zero_stage=2",
)


def named(heard: Heard, first_step: int) -> list[Straggler]:
    """As the controller would have it from the reports of the steps from `first_step` on."""
    watch, steps = StragglerWatch(1.5), Gathering(heard.world_size)
    found = []
    for message in heard.by_kind["step"]:
        reports = steps.add(message)
        if reports is not None and reports[0]["step"] >= first_step:
            found += watch.look(reports)
    return found


def test_a_slow_rank_is_named_with_what_it_is_slow_at(ranks: Ranks, tmp_path: Path) -> None:
    with ranks.start(open_run(ranks.data, tmp_path, *WORDS)) as live:
        pids = live.hear_pids()
        live.hear_until(lambda heard: len(heard.rows) >= 5)
        first_step = len(live.heard.rows) + 1
        with slowed(pids[1]):
            heard = live.hear_until(lambda heard: bool(named(heard, first_step)))
    (straggler,) = named(heard, first_step)
    assert (straggler.rank, straggler.phase) == (1, "compute")
    assert straggler.factor > 1.5
    assert heard.by_kind["stalled"] == [], "slow is no hang"

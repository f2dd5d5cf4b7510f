"""Who takes over whom, and with what: the decisions of population-based training."""

from dataclasses import replace
from typing import Any

import pytest
from trials import ended, started

from launch.sweep_words import read_words
from orchestrator.codec import encode
from orchestrator.errors import ConfigError
from orchestrator.sweep.pbt import Child, children, line_of, num_rounds, selection
from orchestrator.sweep.settings import Algorithm, SweepConfig
from orchestrator.sweep.space import Choices, Interval, contains
from orchestrator.sweep.study import Part, Record, Study, read_study

SPACE = (
    Interval("optim.lr", 1e-4, 1e-1, is_log=True),
    Interval("optim.warmup_steps", 1, 9, is_integer=True),
    Choices("optim.weight_decay", ("0", "0.1", "1")),
)
TEN = SweepConfig(algorithm=Algorithm.pbt, population=10, interval_steps=20, seed=3)
TOTAL = 50


def born(study: Study, maximise: bool = False, config: SweepConfig = TEN) -> list[Child]:
    trials = list(study.trials.values())
    return children(config, SPACE, trials, total_steps=TOTAL, maximise=maximise)


def named(child: Child) -> str:
    return f"m{child.part.member}r{child.part.round}"


def added(child: Child) -> dict[str, Any]:
    return {
        "event": Record.trial_added,
        "trial": named(child),
        "parameters": child.parameters,
        "part": encode(child.part),
    }


def after(records: list[dict[str, Any]], values: list[float | None], maximise: bool = False) -> list[dict[str, Any]]:
    """The records of one more round, which came to `values` by member."""
    new = born(read_study(records), maximise)
    assert [child.part.member for child in new] == list(range(10))
    records = records + [added(child) for child in new]
    for child in new:
        value = values[child.part.member]
        state = "failed" if value is None else "finished"
        records += [started(named(child)), ended(named(child), state, value, child.part.steps)]
    return records


VALUES: list[float | None] = [5.0, 1.0, 9.0, 4.0, 8.0, 2.0, 3.0, 6.0, 7.0, 4.5]


def test_the_first_round_is_drawn_from_the_space_by_the_seed() -> None:
    first = born(read_study([]))
    assert [child.part for child in first] == [
        Part(member=member, round=0, parent=None, steps=20) for member in range(10)
    ]
    assert all(contains(d, child.parameters[d.key]) for child in first for d in SPACE)
    assert len({tuple(child.parameters.items()) for child in first}) == 10
    assert born(read_study([])) == first
    assert born(read_study([]), config=replace(TEN, seed=4)) != first


def test_the_worst_fifth_take_over_the_best_and_the_others_go_on_as_they_are() -> None:
    records = after([], VALUES)
    study = read_study(records)
    second = born(study)
    assert [child.part.steps for child in second] == [40] * 10
    for child in second:
        own = study.trials[f"m{child.part.member}r0"]
        if child.part.member in (2, 4):  # 9.0 and 8.0
            assert child.part.parent in ("m1r0", "m5r0")  # 1.0 and 2.0
            donor = study.trials[child.part.parent]
            assert child.parameters != donor.parameters
            assert all(contains(d, child.parameters[d.key]) for d in SPACE)
        else:
            assert child.part.parent == own.id
            assert child.parameters == own.parameters


def test_a_number_that_is_taken_over_is_a_fifth_larger_or_smaller_and_a_listed_value_its_neighbour() -> None:
    records = after([], VALUES)
    study = read_study(records)
    for child in born(study, config=replace(TEN, resample_probability=0.0)):
        if child.part.member not in (2, 4):
            continue
        donor = study.trials[str(child.part.parent)].parameters
        ratio = float(child.parameters["optim.lr"]) / float(donor["optim.lr"])
        assert min(abs(ratio - 0.8), abs(ratio - 1.2)) < 1e-4
        assert child.parameters["optim.warmup_steps"] != donor["optim.warmup_steps"] or donor[
            "optim.warmup_steps"
        ] in ("1", "9")
        values = SPACE[2].values
        places = [values.index(texts["optim.weight_decay"]) for texts in (child.parameters, donor)]
        assert abs(places[0] - places[1]) <= 1


def test_where_more_is_better_the_others_are_the_worst() -> None:
    second = born(read_study(after([], VALUES, maximise=True)), maximise=True)
    moved = {child.part.member for child in second if child.part.parent != f"m{child.part.member}r0"}
    assert moved == {1, 5}


def test_a_member_that_diverged_or_failed_is_replaced_beside_the_worst() -> None:
    values = [None, None, None, *VALUES[3:]]
    second = born(read_study(after([], values)))
    moved = {child.part.member for child in second if child.part.parent != f"m{child.part.member}r0"}
    assert moved == {0, 1, 2}
    assert born(read_study(after([], [None] * 10))) == []


@pytest.mark.parametrize(("values", "best", "worst"), [
    ([1.0, 2.0], [0], [1]),
    ([1.0, 1.0, 1.0], [0], [2]),
    ([None, 2.0, 1.0, 3.0], [2], [0]),
    ([None, None, 1.0, 3.0], [2], [0, 1]),
    ([None, None, None, 3.0], [3], [0, 1, 2]),
])  # fmt: skip
def test_nobody_is_among_the_best_and_the_worst(
    values: list[float | None], best: list[int], worst: list[int]
) -> None:
    config = replace(TEN, population=len(values))
    records: list[dict[str, Any]] = []
    for child in born(read_study([]), config=config):
        value = values[child.part.member]
        records += [added(child), ended(named(child), "failed" if value is None else "finished", value)]
    found = selection(list(read_study(records).trials.values()), 0.2, maximise=False)
    assert [sorted(t.part.member for t in group if t.part) for group in found] == [best, worst]


def test_one_that_failed_with_a_value_hands_nothing_on() -> None:
    config = replace(TEN, population=3)
    records = []
    for child, (state, value) in zip(
        born(read_study([]), config=config), (("failed", 0.1), ("finished", 2.0), ("finished", 3.0)), strict=True
    ):
        records += [added(child), ended(named(child), state, value)]
    parents = {child.part.member: child.part.parent for child in born(read_study(records), config=config)}
    assert parents == {0: "m1r0", 1: "m1r0", 2: "m2r0"}


def test_a_round_waits_for_all_of_the_one_before_and_the_last_one_is_the_end() -> None:
    assert num_rounds(TEN, TOTAL) == 3
    records = after([], VALUES)
    assert born(read_study(records[:-1])) == []
    records = after(records, VALUES)
    records = after(records, VALUES)
    study = read_study(records)
    assert [trial.part.steps for trial in study.trials.values() if trial.part][-1] == TOTAL
    assert born(study) == []


@pytest.mark.parametrize("cut", range(0, 30, 3))
def test_a_driver_killed_anywhere_adds_what_is_missing_and_decides_the_same(cut: int) -> None:
    """The 30 records of the second round: what is there already is not decided again, the rest comes out the same."""
    first = after([], VALUES)
    whole = read_study(after(first, VALUES))
    study = read_study(after(first, VALUES)[: len(first) + cut])
    for child in born(study):
        study.apply(added(child))
    assert {name: (t.parameters, t.part) for name, t in study.trials.items()} == {
        name: (t.parameters, t.part) for name, t in whole.trials.items()
    }


def test_the_best_is_of_the_newest_round() -> None:
    records = after(after([], VALUES), [value and 10 + value for value in VALUES])
    best = read_study(records).best(maximise=False)
    assert best is not None
    assert best.id == "m1r1"
    early = read_study(records[:30]).best(maximise=False)
    assert early is not None
    assert early.id == "m1r0"


def test_the_line_of_a_trial_leads_through_whom_it_took_over() -> None:
    study = read_study(after(after([], VALUES), VALUES))
    moved = next(t for t in study.trials.values() if t.part and t.part.parent and t.part.member == 2)
    line = line_of(study.trials, moved)
    assert [trial.part.round for trial in line if trial.part] == [0, 1]
    assert line[0].part is not None
    assert line[0].part.member in (1, 5)


@pytest.mark.parametrize(("words", "said"), [
    (["model=tiny,quickstart"], "model can't be searched by sweep.algorithm=pbt"),
    (["train.steps=10,20"], "train.steps can't be searched"),
    (["optim.lr=1e-3,1e-2", "sweep.pruner=asha"], "use sweep.pruner=none"),
    (["optim.lr=1e-3,1e-2", "sweep.population=1"], "use sweep.population=2 or more"),
    (["optim.lr=1e-3,1e-2", "sweep.exploit_fraction=0.7"], "use 0 to 0.5"),
])  # fmt: skip
def test_what_can_t_be_handed_on_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_words(["experiment=tiny_test", "sweep=pbt", *words])

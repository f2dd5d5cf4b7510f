"""What a later start of a sweep is held to."""

from typing import Any

import pytest

from launch.compose import compose
from orchestrator.sweep.description import base_recipe, default_id, describe, differences
from orchestrator.sweep.settings import Algorithm, Metric, Pruner, SweepConfig
from orchestrator.sweep.space import Choices, Space

LR: Space = (Choices("optim.lr", ("1e-3", "3e-3")),)


def described(*words: str, space: Space = LR, metric: Metric = Metric.loss) -> dict[str, Any]:
    base = compose(["experiment=tiny_test", *words]).config
    return describe(SweepConfig(), Algorithm.grid, metric, space, base_recipe(base, None, space))


@pytest.mark.parametrize(
    "words",
    [
        ["optim.lr=1"],
        ["cluster.num_workers=2"],
        ["run.root=/elsewhere"],
        ["tracking.wandb.group=g"],
        ["parallel=zero2"],
    ],
)
def test_what_may_change(words: list[str]) -> None:
    assert differences(described(), described(*words), "s") == []


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["train.steps=21"], "train.steps was 20 when sweep s started, now 21; "),
        (["optim.weight_decay=0"], "optim.weight_decay was 0.1 when sweep s started, now 0.0; "),
        (["model.num_layers=3"], "model.num_layers was 2 when sweep s started, now 3; "),
        (["run.seed=7"], "run.seed was 1234 when sweep s started, now 7; "),
    ],
)
def test_what_makes_trials_incomparable_is_named_with_both_values(words: list[str], start: str) -> None:
    [found] = differences(described(), described(*words), "s")
    assert found.startswith(start)
    assert found.endswith("or say --accept-changes")


def test_more_values_of_the_same_keys_are_the_same_sweep() -> None:
    more: Space = (Choices("optim.lr", ("1e-3", "3e-3", "1e-2")),)
    base = compose(["experiment=tiny_test"]).config
    assert differences(described(), described(space=more), "s") == []
    assert default_id(base, Algorithm.grid, LR) == default_id(base, Algorithm.grid, more)


def test_other_keys_are_another_sweep() -> None:
    other: Space = (*LR, Choices("train.steps", ("1", "2")))
    base = compose(["experiment=tiny_test"]).config
    assert default_id(base, Algorithm.grid, LR) != default_id(base, Algorithm.grid, other)
    [found] = differences(described(), described(space=other), "s")
    assert found.startswith("sweep s searched optim.lr, now optim.lr, train.steps; ")


def test_a_swept_group_takes_its_fields_out_of_the_base() -> None:
    models: Space = (Choices("model", ("tiny", "quickstart")),)
    assert differences(described(space=models), described("model.num_layers=3", space=models), "s") == []


def test_another_pruner_is_named() -> None:
    base = base_recipe(compose(["experiment=tiny_test"]).config, None, LR)
    whole, asha, tighter = (
        describe(settings, Algorithm.random, Metric.loss, LR, base)
        for settings in (
            SweepConfig(),
            SweepConfig(pruner=Pruner.asha, min_steps=5),
            SweepConfig(pruner=Pruner.asha, min_steps=5, reduction_factor=4),
        )
    )
    [found] = differences(whole, {**whole, "pruner": "asha"}, "s")
    assert found.startswith(
        "sweep.pruner was none when sweep s started, now asha; start another sweep (sweep.id=...)"
    )
    [found] = differences(asha, tighter, "s")
    assert found.startswith("sweep.reduction_factor was 3 when sweep s started, now 4; ")
    assert differences(asha, asha, "s") == []


def test_another_metric_is_named() -> None:
    [found] = differences(described(), described(metric=Metric.tokens_per_s), "s")
    assert found.startswith("sweep.metric was loss when sweep s started, now tokens_per_s; ")

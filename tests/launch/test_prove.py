"""`phalanx prove`: which differences it finds, what it trains, when it kills; the whole is in tests/e2e."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from launch import cli
from launch.compose import compose
from launch.kills import Moment, seeded_kills
from launch.prove import next_folder
from launch.prove_compare import Check, Course, other_world_checks, same_world_checks
from launch.prove_digest import final_digest
from launch.prove_twin import prepare_words, twin_words, world_size_problems
from orchestrator.config import Offload, Precision
from orchestrator.observe.metrics import MetricsLog, StepRow, surviving_rows
from orchestrator.runfolder import RunFolder
from orchestrator.validate import problems


def row(step: int, **changes: object) -> StepRow:
    values = {"loss": 4.0 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens": 10, "tokens_per_s": 1.0, "step_s": 1.0}
    digests = {"batch_digest": f"{step:016x}", "rng_digest": f"{step + 9:016x}"}
    return StepRow(**{"step": step, "attempt": 1, "data_s": 0.0, **digests, **values, **changes})


def course(final_digest: str = "ab", **changes: object) -> Course:
    """Five steps; `changes` are the third one's."""
    rows = {step: row(step, **(changes if step == 3 else {})) for step in range(1, 6)}
    return Course(rows=rows, final_digest=final_digest)


def without(step: int) -> Course:
    whole = course()
    return replace(whole, rows={each: row for each, row in whole.rows.items() if each != step})


def different(checks: list[Check]) -> list[str]:
    return [check.what for check in checks if not check.is_equal]


def test_equal_runs_are_equal_whatever_their_speed_and_attempts() -> None:
    checks = same_world_checks(course(attempt=4, step_s=9.0, tokens_per_s=0.1), course())
    assert different(checks) == []
    assert [check.what for check in checks] == [
        "steps", "samples", "learning rate", "random numbers", "loss", "gradient norm", "final checkpoint",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (course(batch_digest="0" * 16), ["samples"]),
        (course(tokens=11), ["samples"]),
        (course(lr=math.nextafter(1e-3, 1)), ["learning rate"]),
        (course(rng_digest="0" * 16), ["random numbers"]),
        (course(loss=math.nextafter(4.0 / 3, 9)), ["loss"]),
        (course(loss=math.nan), ["loss"]),
        (course(grad_norm=math.nextafter(1.0, 2)), ["gradient norm"]),
        (course(final_digest="ac"), ["final checkpoint"]),
        (without(5), ["steps", "samples", "learning rate", "random numbers", "loss", "gradient norm"]),
    ],
)
def test_each_difference_is_found_and_only_that(run: Course, what: list[str]) -> None:
    assert different(same_world_checks(run, course())) == what


def test_a_difference_names_its_first_step_and_both_values() -> None:
    (check,) = [check for check in same_world_checks(course(loss=2.5), course()) if not check.is_equal]
    assert check.detail == f"differs first at step 3: 2.5, not {4.0 / 3!r}"


def test_a_run_with_steps_too_many_is_found() -> None:
    assert "steps" in different(same_world_checks(course(), without(5)))


def test_two_runs_that_did_nothing_prove_nothing() -> None:
    nothing = Course(rows={}, final_digest="ab")
    assert different(same_world_checks(nothing, nothing)) == ["steps"]


@pytest.mark.parametrize(
    ("change", "precision", "what"),
    [
        (1 + 9e-6, Precision.fp32, []),
        (1 + 2e-5, Precision.fp32, ["loss"]),
        (1 + 4e-3, Precision.bf16, []),
        (1 + 6e-3, Precision.bf16, ["loss"]),
        (math.nan, Precision.bf16, ["loss"]),
        (math.inf, Precision.fp32, ["loss"]),
    ],
)
def test_other_world_sizes_have_a_tolerance(change: float, precision: Precision, what: list[str]) -> None:
    run = course(loss=4.0 / 3 * change, grad_norm=1.1, rng_digest="0" * 16, final_digest="other")
    assert different(other_world_checks(run, course(), precision)) == what


def test_at_other_world_sizes_the_samples_are_the_same() -> None:
    run = course(batch_digest="0" * 16, lr=2e-3)
    assert different(other_world_checks(run, course(), Precision.fp32)) == ["samples", "learning rate"]


def test_a_tampered_row_of_metrics_is_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(1, 6):
        log.append(row(step))
    log.close()
    written = Course(rows=surviving_rows(path), final_digest="ab")
    assert different(same_world_checks(written, course())) == []
    text = path.read_text()
    assert text.count("2.0,") == 1
    path.write_text(text.replace("2.0,", "2.0000000000000004,"))
    tampered = Course(rows=surviving_rows(path), final_digest="ab")
    assert different(same_world_checks(tampered, course())) == ["loss"]


def test_runs_without_a_checkpoint_are_not_equal(tmp_path: Path) -> None:
    digests = {final_digest(RunFolder(tmp_path / name)) for name in ("calm", "killed")}
    assert len(digests) == 2


def twin(tmp_path: Path, *overrides: str, steps: int = 40) -> list[str]:
    config = compose([*overrides, "data.path=corpus"]).config
    return twin_words(config, steps=steps, num_workers=2, root=tmp_path / "a b", data=tmp_path / "data")


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=gpt_1_3b_h100x8", "parallel=zero1"],
        ["experiment=llama_8b_h100x64"],
        ["experiment=seed_transformer"],
        ["experiment=quickstart", "train.precision=bf16", "parallel=zero3"],
    ],
)
def test_a_twin_is_small_and_keeps_what_is_proved(overrides: list[str], tmp_path: Path) -> None:
    config = compose([*overrides, "data.path=corpus"]).config
    small = compose([*overrides, *twin(tmp_path, *overrides)]).config
    assert (small.parallel.zero_stage, small.train.precision) == (config.parallel.zero_stage, config.train.precision)
    assert (small.optim.lr, small.optim.schedule) == (config.optim.lr, config.optim.schedule)
    assert (small.model.activation, small.model.norm) == (config.model.activation, config.model.norm)
    assert (small.model.hidden_size, small.model.num_layers, small.train.steps) == (64, 2, 40)
    assert small.optim.warmup_steps <= 20
    assert problems(small) == []
    assert small.run.root == str(tmp_path / "a b")
    assert small.tracking.every_steps == 1


def test_a_twin_of_a_run_that_may_shrink_and_keeps_checkpoints_on_its_nodes_is_one_run_of_its_own(
    tmp_path: Path,
) -> None:
    """Another proof's checkpoints, of runs of the same names, are not on its disk."""
    overrides = ["experiment=gpt_1_3b_h100x8", "cluster.min_workers=4", "checkpoint.local_dir=/scratch/phalanx"]
    small = compose([*overrides, *twin(tmp_path, *overrides)]).config
    assert problems(small) == []
    assert small.checkpoint.local_dir == str(tmp_path / "a b" / "disks")


def test_a_twin_needs_no_fast_disk(tmp_path: Path) -> None:
    words = twin(tmp_path, "experiment=quickstart", "parallel.zero_stage=3", "parallel.offload=nvme",
                 f"parallel.nvme_path={tmp_path}")  # fmt: skip
    assert f"parallel.offload={Offload.params}" in words


def test_the_twins_data_is_prepared_by_its_own_words(tmp_path: Path) -> None:
    overrides = ["experiment=gpt_1_3b_h100x8"]
    words = prepare_words(compose([*overrides, "data.path=corpus"]).config, tmp_path / "data", Path("/lib/python"))
    data = compose([*overrides, *words]).config.data
    assert data.path == str(tmp_path / "data")
    assert (data.vocab_size, data.tokenizer) == (400, None)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 15])
@pytest.mark.parametrize("seed", range(5))
def test_kills_are_drawn_from_the_seed(count: int, seed: int) -> None:
    def draw(seed: int) -> list[object]:
        return [*seeded_kills(seed, count, steps=60, world_size=2)]

    kills = seeded_kills(seed, count, steps=60, world_size=2)
    steps = [kill.step for kill in kills if kill.moment is Moment.step]
    assert [*kills] == draw(seed)
    assert draw(seed) != draw(seed + 1)
    assert len(kills) == count
    assert steps == sorted(set(steps))
    assert all(1 <= step < 56 for step in steps)
    assert {kill.rank for kill in kills} <= {0, 1}
    assert {kill.moment for kill in kills} == (set(Moment) if count >= 3 else {Moment.step})
    assert kills[-1].moment is Moment.step


def test_dropout_is_proved_at_one_world_size() -> None:
    config = compose(["experiment=quickstart", "model.dropout=0.1", "data.path=corpus"]).config
    assert world_size_problems(config, 2, []) == []


def test_each_proof_has_a_folder_of_its_own(tmp_path: Path) -> None:
    assert next_folder(tmp_path).name == "prove-001"
    for name in ("prove-001", "prove-007", "prove-mine"):
        (tmp_path / name).mkdir()
    assert next_folder(tmp_path).name == "prove-008"


@pytest.mark.parametrize(
    ("words", "sentences"),
    [
        (["--steps", "5"], ["--steps 5 is too few", "--kills 5 does not fit 5 steps"]),
        (["--kills", "0"], ["--kills 0 does not fit 60 steps; use 1 to 15"]),
        (["--workers", "9"], ["--workers 9"]),
        (["--world-sizes", "1,16"], ["--world-sizes 16", "1, 2, 4, 8 workers"]),
        (["--world-sizes", "3"], ["--world-sizes 3"]),
        (["--world-sizes", "1,many"], ["1,many is not a list of world sizes"]),
        (["--world-sizes", "1", "model.dropout=0.1"], ["model.dropout=0.1", "without dropout"]),
        (["model=tinny"], ["model=tinny"]),
    ],
)
def test_bad_input_exits_with_2_and_starts_nothing(
    words: list[str], sentences: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "runs"
    assert cli.main(["prove", "experiment=quickstart", f"run.root={root}", *words]) == 2
    shown = capsys.readouterr().err
    assert all(sentence in shown for sentence in sentences), shown
    assert not root.exists()

"""The words of a sweep: Hydra's grammar to dimensions, settings from files and words, what is refused."""

import json
from pathlib import Path

import pytest

from launch import cli
from launch.compose import choices, sweep_dimension
from launch.plan import run as plan_verb
from launch.sweep import run
from launch.sweep_plan import makespan_s, trials_at_once
from launch.sweep_words import SweepWords, read_words
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.spec import NodeFacts
from orchestrator.sweep.settings import Algorithm, Pruner
from orchestrator.sweep.space import Choices, Dimension, Interval

BASE = ["experiment=tiny_test"]


@pytest.fixture(autouse=True)
def no_ray_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def refused(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read_words([*BASE, *words])
    return list(caught.value.problems)


def read(*words: str) -> SweepWords:
    return read_words([*BASE, *words])


@pytest.mark.parametrize(
    ("word", "dimension"),
    [
        ("optim.lr=1e-3,3e-4", Choices("optim.lr", ("0.001", "0.0003"))),
        ("train.steps=choice(10,20)", Choices("train.steps", ("10", "20"))),
        ("train.steps=range(10,40,10)", Choices("train.steps", ("10", "20", "30"))),
        ("train.steps=sort(30,10,20)", Choices("train.steps", ("10", "20", "30"))),
        ("train.steps=10,20,10", Choices("train.steps", ("10", "20"))),
        ("data.path=/data/a,'/data/b c'", Choices("data.path", ("/data/a", "/data/b c"))),
        ("optim.betas=[0.9,0.95],[0.9,0.99]", Choices("optim.betas", ("[0.9,0.95]", "[0.9,0.99]"))),
        ("model=glob(gpt_1*,exclude=gpt_17*)", Choices("model", ("gpt_125m", "gpt_13b", "gpt_1_3b"))),
        ("optim.lr=interval(1e-4,1e-2)", Interval("optim.lr", 1e-4, 1e-2)),
        ("optim.lr=tag(log,interval(1e-4,1e-2))", Interval("optim.lr", 1e-4, 1e-2, is_log=True)),
        ("train.steps=int(interval(8,64))", Interval("train.steps", 8, 64, is_integer=True)),
        ("train.steps=20", None),
        ("data.path=/data/a,b(1", None),  # not in the grammar: a text as it stands
    ],
)
def test_hydras_grammar(word: str, dimension: Dimension | None) -> None:
    assert sweep_dimension(word, choices("model")) == dimension


def test_shuffled_values_are_the_same_each_time() -> None:
    one, two = (sweep_dimension("train.steps=shuffle(range(1,40))") for _ in range(2))
    assert one == two
    assert isinstance(one, Choices)
    assert sorted(map(int, one.values)) == list(range(1, 40))
    assert list(one.values) != sorted(one.values, key=int)


def test_lists_make_a_grid_and_an_interval_a_search() -> None:
    grid = read("optim.lr=1e-3,3e-3", "optim.warmup_steps=2,5")
    assert grid.algorithm is Algorithm.grid
    assert len(grid.trials()) == 4
    assert read("optim.lr=interval(1e-3,1e-2)").algorithm is Algorithm.tpe
    assert read("optim.lr=1e-3,3e-3", "sweep.algorithm=gp").algorithm is Algorithm.gp


def test_a_trials_config_is_the_base_and_its_parameters() -> None:
    sweep = read("optim.lr=1e-3,3e-3", "train.steps=7")
    config = sweep.compose(sweep.trials()[1])
    assert (config.optim.lr, config.train.steps, config.run.name) == (3e-3, 7, "tiny_test")


def test_of_two_words_for_one_key_the_last_counts() -> None:
    assert read("optim.lr=1e-3,3e-3", "optim.lr=1e-2", "train.steps=7,8").space == (
        Choices("train.steps", ("7", "8")),
    )
    assert read("optim.lr=1e-2", "optim.lr=1e-3,3e-3").base_words == ("experiment=tiny_test",)


def test_a_file_of_conf_sweep_gives_settings_and_space() -> None:
    sweep = read("sweep=lr", "sweep.trials=5", "optim.warmup_steps=choice(3)")
    assert (sweep.settings.trials, sweep.settings.pruner, sweep.algorithm) == (5, Pruner.asha, Algorithm.tpe)
    assert sweep.space == (
        Interval("optim.lr", 1e-4, 1e-2, is_log=True),
        Choices("optim.warmup_steps", ("3",)),
    )


@pytest.mark.parametrize("name", choices("sweep"))
def test_every_file_of_conf_sweep_is_sound(name: str) -> None:
    read(f"sweep={name}", "optim.lr=1e-3,3e-3")


def test_a_persons_own_file(tmp_path: Path) -> None:
    file = tmp_path / "sweep" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("trials: 3\nalgorithm: random\nspace:\n  optim.lr: [0.001, 0.003]\n  train.steps: 9\n")
    sweep = read("--config-dir", str(tmp_path), "sweep=mine")
    assert sweep.space == (Choices("optim.lr", ("0.001", "0.003")),)
    assert sweep.compose({"optim.lr": "0.001"}).train.steps == 9
    assert (sweep.settings.trials, sweep.algorithm) == (3, Algorithm.random)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.steps=3"], "the sweep has nothing to search; give several values, as in optim.lr=1e-3,3e-3"),
        (["optim.lr=1,2", "sweep.trails=3"], "sweep.trails is not a key; did you mean sweep.trials?"),
        (["optim.lr=1,2", "sweep=ahsa"], "sweep=ahsa is not known; did you mean asha? "),
        (["optim.lr=1,2", "sweep.trials=many"], "sweep.trials=many is not an integer; "),
        (["optim.lr=1,2", "sweep.trials=0"], "sweep.trials=0 is too small; use sweep.trials=1 or more"),
        (["optim.lr=1,2", "sweep.pruner=median"], "sweep.pruner=median is not known; "),
        (["optim.lr=1,2", "run.id=mine"], "run.id can't be set in a sweep: "),
        (["optim.lr=interval(1,2)", "sweep=grid"], "sweep.algorithm=grid can't list optim.lr, an interval; "),
        (["run.seed=range(0,200)", "train.steps=range(1,200)"], "the grid has 39,800 trials, more than 10,000; "),
        (["optim.lr=tag(log,interval(0,1))"], "optim.lr=tag(log,interval(0,1)) starts at 0, "),
        (["optim.lrr=1,2"], "optim.lrr is not a key; did you mean optim.lr?"),
        (
            ["train.steps=interval(5,9)"],
            "train.steps=interval(5,9) gives fractions, and train.steps takes integers; ",
        ),
        (["model=tiny,tinny"], "model=tinny is not known; did you mean tiny? "),
        (["optim.lr=1e-3,-1"], "optim.lr=-1.0 "),
        (["train.global_batch_size=8,9", "train.micro_batch_size=2"], "train.global_batch_size=9 "),
    ],
)
def test_a_wrong_sweep_is_refused_in_one_sentence(words: list[str], sentence: str) -> None:
    [found] = refused(*words)
    assert found.startswith(sentence)


def test_a_mistyped_interval_is_named() -> None:
    found = refused("optim.lr=interval(1e-4,1e-2")
    assert found[0].startswith("the sweep has nothing to search")
    assert found[1].startswith("optim.lr=interval(1e-4,1e-2 can't be read (")


@pytest.mark.parametrize("name", ["../x", "my sweep", "s" * 81])
def test_a_sweeps_id_must_make_ids_of_runs(name: str) -> None:
    [found] = refused("optim.lr=1e-3,3e-3", f"sweep.id='{name}'")
    assert found.startswith(("sweep.id='", f"sweep.id={name} has 81 characters; use 80 or fewer"))


def test_all_wrong_values_are_named_with_a_trial_that_has_them() -> None:
    found = refused("optim.lr=1e-3,-1", "train.steps=5,0")
    assert len(found) == 2
    assert found[0].endswith("(in the trial optim.lr=0.001 train.steps=0)")


def test_a_preview_lists_the_trials_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [*BASE, f"run.root={tmp_path}/runs", "optim.lr=1e-3,3e-3", "train.steps=10,20"]
    assert run([*words, "--preview"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "4 trials" in lines
    assert sum("optim.lr=0.001" in line for line in lines) == 2
    assert lines[-2].startswith("together    30,720 tokens, ")
    assert lines[-1].startswith("time        ")
    assert run([*words, "--preview", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert [trial["steps"] for trial in made["trials"]] == [10, 20, 10, 20]
    assert not (tmp_path / "runs").exists()


def test_a_preview_says_how_long_the_sweep_takes_and_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    """As `plan` has it for one trial; together at the sweep's concurrency, where a cluster is only named."""
    recipe = ["experiment=gpt_1_3b_h100x8", "cluster.address=somewhere:6379"]
    assert plan_verb([*recipe, "--json"]) == 0
    one_s = json.loads(capsys.readouterr().out)["training_time_s"]
    words = [*recipe, "optim.lr=1e-3,2e-3,3e-3", "--preview", "--json", "--price", "2.5"]
    for more, places, turns in (
        ([], None, 3),
        (["sweep.max_concurrent=2"], 2, 2),
        (["sweep.max_concurrent=9"], 9, 1),
    ):
        assert run([*words, *more]) == 0
        made = json.loads(capsys.readouterr().out)
        assert [trial["time_s"] for trial in made["trials"]] == pytest.approx([one_s] * 3)
        together = made["together"]
        assert (together["concurrency"], together["time_s"]) == (places, pytest.approx(turns * one_s))
        assert together["device_hours"] == pytest.approx(3 * 8 * one_s / 3600)
        assert together["price"] == pytest.approx(2.5 * together["device_hours"])
    assert run([*words[:-3], "--price", "2.5", "sweep.max_concurrent=2"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("time        ") and ", 2 at a time: " in last
    assert last.endswith(" at 2.5 an hour") and "GPU-hours" in last


def test_a_search_takes_at_most_all_trials_as_long_as_the_longest(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=gpt_1_3b_h100x8", "cluster.address=somewhere:6379", "train.steps=int(interval(100,200))"]
    assert run([*words, "sweep.trials=10", "sweep.max_concurrent=4", "--preview", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    longest = max(trial["time_s"] for trial in made["trials"])
    assert made["together"]["time_s"] == pytest.approx(3 * longest)
    assert made["together"]["device_hours"] == pytest.approx(10 * 8 * longest / 3600)
    assert run([*words, "sweep.trials=10", "--preview"]) == 0
    assert "time        at most" in (out := capsys.readouterr().out) and "one after the other" in out


def test_nothing_is_said_of_time_where_nothing_is_known_of_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiment=gpt_1_3b_h100x8", "cluster.hardware=null", "cluster.device=cuda", "optim.lr=1e-3,2e-3"]
    assert run([*words, "cluster.address=somewhere:6379", "--preview"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("together ")


def test_trials_start_when_a_place_is_free() -> None:
    assert makespan_s([5.0, 1.0, 1.0, 4.0], 2) == 6.0
    assert makespan_s([5.0, 1.0, 1.0, 4.0], 1) == 11.0
    assert makespan_s([5.0, 1.0], 8) == 5.0


@pytest.mark.parametrize(("cpus", "limit", "at_once"), [(8, "null", 2), (8, "1", 1), (11, "9", 2), (2, "null", None)])
def test_the_widest_trials_that_fit_the_nodes_are_counted(cpus: int, limit: str, at_once: int | None) -> None:
    asked = read("cluster.num_workers=1,4", f"sweep.max_concurrent={limit}", "cluster.device=cpu")
    assert trials_at_once(asked, [NodeFacts(name="here", cpus=cpus, gpus=0)]) == at_once
    assert trials_at_once(asked, None) == (None if limit == "null" else int(limit))


@pytest.mark.parametrize("option", ["-m", "--multirun"])
def test_train_with_lists_is_the_sweep_of_the_same_grid(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials in the order of Hydra's own multirun: the last list turns fastest."""
    words = [*BASE, "optim.lr=1e-3,3e-3", "train.steps=10,20", "--preview", "--json"]
    assert cli.main(["train", option, *words]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert cli.main(["sweep", *words]) == 0
    assert json.loads(capsys.readouterr().out) == trained
    assert [(trial["parameters"]["optim.lr"], trial["steps"]) for trial in trained["trials"]] == [
        ("0.001", 10),
        ("0.001", 20),
        ("0.003", 10),
        ("0.003", 20),
    ]


def test_train_with_an_interval_is_refused_as_a_grid_can_not_list_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", *BASE, "optim.lr=interval(1e-3,3e-3)", "--preview"]) == 2
    assert "sweep.algorithm=grid can't list optim.lr, an interval" in capsys.readouterr().err


def test_a_metric_that_the_recipe_does_not_make_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.metric=eval_loss needs evaluations"):
        run([*BASE, "optim.lr=1e-3,3e-3", "sweep.metric=eval_loss"])


def test_trials_are_judged_where_they_are_evaluated(capsys: pytest.CaptureFixture[str]) -> None:
    """quickstart evaluates at step 75 of 150: at ASHA's steps 16 and 48 no trial would have a value."""
    words = ["experiment=quickstart", "optim.lr=tag(log,interval(1e-4,1e-2))", "sweep=asha", "--preview"]
    assert run(words) == 0
    assert "tpe, pruning: asha at step 75" in capsys.readouterr().out.splitlines()[0]
    assert run([*words, "sweep.metric=loss"]) == 0
    assert "tpe, pruning: asha at steps 16, 48" in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.eval_every_steps=150"], "train.eval_every_steps=150 makes none before the end"),
        (["sweep.min_steps=150"], r"sweep\.min_steps=150 is no earlier than the end"),
        (["train.eval_every_steps=50,75"], r"train\.eval_every_steps differs between them"),
    ],
)
def test_a_pruner_that_could_not_compare_is_refused(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run(["experiment=quickstart", "optim.lr=1e-3,3e-3", "sweep=asha", *words, "--preview"])


def test_a_trial_that_can_never_fit_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(PlacementError, match=r"cluster\.num_workers=9999 needs 9,999 CPUs"):
        run([*BASE, "cluster.num_workers=1,9999", "train.global_batch_size=19998", f"run.root={tmp_path}/runs"])
    assert not (tmp_path / "runs").exists()


def test_one_w_and_b_run_for_all_trials_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    with pytest.raises(ConfigError, match="WANDB_RUN_ID=mine would make one W&B run of all trials"):
        run(["experiment=quickstart", "optim.lr=1e-3,3e-3", f"run.root={tmp_path}/runs"])
    assert not (tmp_path / "runs").exists()


def test_missing_data_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        run([*BASE, "optim.lr=1e-3,3e-3", f"run.root={tmp_path}/runs"])
    assert not (tmp_path / "runs").exists()

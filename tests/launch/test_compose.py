"""Overrides to RunConfig: what is taken, what is refused and in which words."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.compose import Composer, choices, compose, from_yaml, resolved_yaml
from orchestrator.config import Offload, Precision
from orchestrator.errors import ConfigError


def refused(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides))
    return list(caught.value.problems)


def test_the_default_config_composes_without_overrides() -> None:
    config = compose([]).config
    assert (config.model.name, config.cluster.num_workers, config.parallel.zero_stage) == ("quickstart", 1, 1)
    assert config.run.root == "runs"
    assert config.fault.max_restarts == 10


def test_groups_experiments_and_values_are_laid_over_each_other() -> None:
    config = compose(["train.steps=7", "experiment=quickstart", "model=tiny", "parallel=zero3"]).config
    assert (config.run.name, config.model.name, config.train.steps) == ("quickstart", "tiny", 7)
    assert config.parallel.zero_stage == 3
    assert config.data.vocab_size == 4096


def test_values_become_the_schemas_types() -> None:
    config = compose(
        ["train.precision=bf16", "parallel.offload=optimizer", "optim.lr=1", "optim.betas=[0.8,0.9]"]
    ).config
    assert config.train.precision is Precision.bf16
    assert config.parallel.offload is Offload.optimizer
    assert config.optim.lr == 1.0
    assert isinstance(config.optim.lr, float)
    assert config.optim.betas == [0.8, 0.9]
    assert type(config.optim.betas) is list


def test_of_two_overrides_of_one_key_the_last_counts() -> None:
    config = compose(["model=gpt_125m", "train.steps=1", "model=tiny", "train.steps=2"]).config
    assert (config.model.name, config.train.steps) == ("tiny", 2)


MANY = [
    [],
    *([f"experiment={name}"] for name in choices("experiment")),
    ["experiment=quickstart", "model=tiny", "parallel=zero3", "optim.lr=1", "optim.betas=[0.8,0.9]"],
    ["optim.betas=[0.9,0.95]", "data.path=/it's mine/a,b", "train.seq_len=null", "train.seq_len=64"],
    ["parallel.ds_config={a:{b:1}}", "+parallel.ds_config.a.c=${train.steps}", "parallel.ds_config.d=[1,2]"],
    ["parallel.ds_config={a:{b:1},c:2}", "~parallel.ds_config.c"],
    ["cluster.slurm.environment={A:1}", "cluster=slurm", "cluster.slurm.environment.B=x y"],
    ["run.name=${model.name}", "data.source=[a.txt,'b c.txt']"],
]
WRONG = [
    ["train.steps=abc", "model=gpt_125", "optim.lrr=1"],
    ["optim.lr=${no.such.key}"],
    ["train.micro_batch_size=${optim.lr}"],
    ["~parallel.ds_config.nothing"],
    ["model.hidden_size=130", "model.num_heads=4"],
]


def test_many_runs_are_composed_as_each_by_itself() -> None:
    """Twice, in another order: what one run sets is not in the next."""
    composer = Composer()
    for words in [*MANY, *reversed(MANY)]:
        assert composer.compose(words) == compose(words)


@pytest.mark.parametrize("words", WRONG)
def test_many_runs_are_refused_as_each_by_itself(words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Composer().compose(words)
    assert list(caught.value.problems) == refused(*words)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.stepz=3", "train.stepz is not a key; did you mean train.steps?"),
        ("lr=3", "lr is not a key; did you mean optim.lr?"),
        ("model.lr=3", "model.lr is not a key; did you mean optim.lr?"),
        ("hydra.run.dir=x", "hydra.run.dir is not a key; phalanx schema prints every key"),
        ("train.steps=abc", "train.steps=abc is not an integer; write it as in train.steps=100"),
        ("train.steps=1e3", "train.steps=1e3 is not an integer; use train.steps=1000"),
        ("train.steps=true", "train.steps=true is not an integer; write it as in train.steps=100"),
        ("train.steps=null", "train.steps=null is not an integer; write it as in train.steps=100"),
        ("train.seq_len=x", "train.seq_len=x is not an integer or null; write it as in train.seq_len=100"),
        ("optim.lr=high", "optim.lr=high is not a number; write it as in optim.lr=0.001"),
        ("model.bias=maybe", "model.bias=maybe is not true or false; write it as in model.bias=true"),
        ("train.precision=fp8", "train.precision=fp8 is not known; known: fp32, bf16, fp16"),
        (
            "tracking.wandb.mode=off",
            "tracking.wandb.mode=off is not known; did you mean offline? "
            "known: auto, online, offline, disabled",
        ),
        (
            "optim.betas=[1,a]",
            "optim.betas=[1,a] is not a list of numbers; write it as in 'optim.betas=[0.9,0.95]'",
        ),
        (
            "optim.betas=0.9,0.95",
            "optim.betas=0.9,0.95 is not one value; write a list in brackets: 'optim.betas=[0.9,0.95]'",
        ),
        (
            "train.steps=1,2",
            "train.steps=1,2 names several values, a run takes one; phalanx sweep makes a run of each",
        ),
        (
            "parallel=zero4",
            "parallel=zero4 is not known; did you mean zero3? "
            "known: zero0, zero1, zero2, zero2_offload, zero3, zero3_nvme, zero3_offload",
        ),
        ("train.steps", "train.steps has no value; write train.steps=VALUE"),
        ("quickstart", "quickstart is not an override; did you mean experiment=quickstart?"),
        ("whatever", "'whatever' is not an override; write KEY=VALUE, as in train.steps=100"),
        ("", "'' is not an override; write KEY=VALUE, as in train.steps=100"),
        ("--fast", "--fast is not an option; --help names them, overrides are KEY=VALUE"),
        (
            "+train.steps=5",
            "+train.steps adds or removes a key, which only parallel.ds_config allows; write train.steps=5",
        ),
        (
            "~model",
            "~model adds or removes a key, which only parallel.ds_config allows; "
            "leave model out or give it a value",
        ),
        ("run={idd:x}", "run.idd is not a key; did you mean run.id?"),
        (
            "--config-dir=/nowhere/at/all",
            "--config-dir=/nowhere/at/all is not a folder; give one that holds experiment/NAME.yaml",
        ),
    ],
)  # fmt: skip
def test_a_wrong_override_is_one_sentence_with_a_way_out(override: str, sentence: str) -> None:
    assert refused(override) == [sentence]


def test_an_unknown_model_is_met_with_the_near_miss_and_the_known_ones() -> None:
    [sentence] = refused("model=gpt_125")
    assert sentence.startswith("model=gpt_125 is not known; did you mean gpt_125m? known: gpt_125m, ")
    assert "tiny" in sentence


def test_keys_choices_types_ranges_and_batch_are_refused_together() -> None:
    found = refused(
        "train.stepz=3", "model=gpt_125", "optim.eps=x", "optim.lr=-1", "train.global_batch_size=96",
        "train.micro_batch_size=5", "cluster.num_workers=8",
    )  # fmt: skip
    starts = [sentence.split(" ")[0] for sentence in found]
    assert starts[:3] == ["train.stepz", "model=gpt_125", "optim.eps=x"]
    assert "optim.lr=-1.0" in starts


def test_a_batch_that_does_not_divide_comes_with_the_other_problems_but_not_alone() -> None:
    uneven = ["train.global_batch_size=96", "train.micro_batch_size=5", "cluster.num_workers=8"]
    assert compose(uneven).config.train.global_batch_size == 96
    found = refused(*uneven, "optim.lr=0")
    assert len(found) == 2
    assert found[1].endswith("micro_batch_size * world_size = 5 * 8 = 40; use 80 or 120")


def test_what_a_refused_overrides_default_would_cause_is_not_reported() -> None:
    # The default model has 256 positions: true, but not what the person got wrong.
    assert len(refused("model=gpt_125", "train.seq_len=2048")) == 1
    assert len(refused("experiment=quickstar", "train.seq_len=2048")) == 1
    assert len(refused("experiment=quickstar", "optim.lr=-1")) == 2


def test_ds_config_takes_any_key_with_and_without_a_sign() -> None:
    overrides = ["parallel.ds_config.a.b=1", "+parallel.ds_config.c=[x,2]", "parallel.ds_config.d={e:null}"]
    assert compose(overrides).config.parallel.ds_config == {"a": {"b": 1}, "c": ["x", 2], "d": {"e": None}}
    assert compose(["parallel.ds_config={a:1}"]).config.parallel.ds_config == {"a": 1}


def test_a_glob_with_braces_is_taken_as_it_stands() -> None:
    assert compose(["data.source=src/**/*.{py,md}"]).config.data.source == "src/**/*.{py,md}"
    assert compose(["data.source=[a.txt,'b c.txt']"]).config.data.source == ["a.txt", "b c.txt"]


def test_a_number_like_run_id_stays_what_was_typed() -> None:
    assert compose(["run.id=1234e567"]).config.run.id == "1234e567"
    assert compose(["run.id=null"]).config.run.id is None


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet=string.printable, min_size=1))
def test_any_text_is_taken_literally(text: str) -> None:
    has_meaning = text[0] in "'\"" or "${" in text or text.lower() == "null"
    if not has_meaning:
        assert compose([f"data.path={text}"]).config.data.path == text


def test_interpolations_are_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    config = compose(["run.root=${oc.env:SCRATCH}/runs", "optim.schedule_steps=${train.steps}"]).config
    assert (config.run.root, config.optim.schedule_steps) == ("/scratch/me/runs", 100)


def test_an_interpolation_that_leads_nowhere_is_refused_with_its_key() -> None:
    [sentence] = refused("run.root=${nope}")
    assert sentence.startswith("run.root: Interpolation key 'nope' not found")


def own_folder(tmp_path: Path, text: str, name: str = "experiment/books.yaml") -> list[str]:
    file = tmp_path / "my conf" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    return ["--config-dir", str(tmp_path / "my conf")]


RECIPE = "# @package _global_\ndefaults:\n  - override /model: tiny\ntrain:\n  steps: 9\n"


def test_a_persons_own_folder_adds_choices(tmp_path: Path) -> None:
    composed = compose([*own_folder(tmp_path, RECIPE), "experiment=books"])
    assert (composed.config.model.name, composed.config.train.steps) == ("tiny", 9)
    assert compose(composed.overrides).config == composed.config


def test_a_misspelt_key_in_a_persons_own_file_names_file_and_near_miss(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, RECIPE.replace("steps", "stepps"))
    assert refused(*folder, "experiment=books") == [
        "experiment/books.yaml: train.stepps is not a key; did you mean train.steps?"
    ]


def test_a_wrong_type_in_a_persons_own_file_is_refused_with_its_key(tmp_path: Path) -> None:
    [sentence] = refused(*own_folder(tmp_path, RECIPE.replace("9", "many")), "experiment=books")
    assert sentence.startswith("experiment/books.yaml: train.steps: Value 'many'")


def test_a_file_that_is_not_yaml_is_refused(tmp_path: Path) -> None:
    [sentence] = refused(*own_folder(tmp_path, "train: [1,\n"), "experiment=books")
    assert "\n" not in sentence


def test_fields_that_nothing_sets_are_all_named(tmp_path: Path) -> None:
    folder = own_folder(tmp_path, "name: mine\nhidden_size: 64\n", "model/mine.yaml")
    found = refused(*folder, "model=mine")
    assert "model.num_layers has no value; give it in a YAML file or as an override" in found
    assert len(found) > 3


def test_a_choice_that_would_be_hidden_by_ours_is_refused(tmp_path: Path) -> None:
    [sentence] = refused(*own_folder(tmp_path, RECIPE, "experiment/quickstart.yaml"), "train.steps=5")
    assert sentence.endswith("has the name of phalanx's own experiment=quickstart; rename the file")


def test_the_resolved_config_reads_back_equal() -> None:
    config = compose(["experiment=quickstart", "optim.eps=1e-9", "parallel.ds_config.a=[1,x]"]).config
    config.tracking.wandb.notes = 'costs ${nothing}: "quoted" # not a comment\nsecond line'
    assert from_yaml(resolved_yaml(config)) == config


@pytest.mark.parametrize(
    "text", ["", "- a\n", "train: [", "train:\n  stepz: 3\n", "train:\n  steps: abc\n", "run: {}\n"]
)
def test_a_text_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        from_yaml(text)

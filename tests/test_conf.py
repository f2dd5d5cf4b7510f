"""Every file under conf/ composes, validates and is what its name says."""

from pathlib import Path

import pytest
import yaml

from launch.compose import CONF, GROUPS, choices, compose
from launch.keys import key_types
from model.config import Activation, Norm, Positions
from model.sizing import num_parameters
from orchestrator.plan import plan_run
from orchestrator.validate import batch_problems

EVERY_CHOICE = [(group, name) for group in GROUPS for name in choices(group)]
FILES = sorted(CONF.rglob("*.yaml"))


@pytest.mark.parametrize(("group", "name"), EVERY_CHOICE)
def test_every_choice_composes_and_validates(group: str, name: str) -> None:
    compose([f"{group}={name}"])


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_experiment_is_a_whole_recipe_that_starts_fresh(name: str) -> None:
    config = compose([f"experiment={name}"]).config
    assert config.run.name == name
    assert batch_problems(config) == []


@pytest.mark.parametrize("name", [name for name in choices("experiment") if name.endswith(("x8", "x64"))])
def test_recipes_for_gpus_plan_and_fit_their_devices(name: str) -> None:
    config = compose([f"experiment={name}"]).config
    plan = plan_run(config, None, device="cuda")
    assert plan.memory_by_stage[plan.zero_stage].device_total < 76e9


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_the_default_batch_divides_over_a_few_workers(num_workers: int) -> None:
    assert batch_problems(compose([f"cluster.num_workers={num_workers}"]).config) == []


@pytest.mark.parametrize("group", ["model", "cluster"])
def test_a_choices_name_is_its_files(group: str) -> None:
    for name in choices(group):
        assert getattr(compose([f"{group}={name}"]).config, group).name == name


# Layers, width, heads, parameters: arXiv 2005.14165, table 2.1; 30B from arXiv 2205.01068, table 1.
GPT_TABLE = {
    "gpt_125m": (12, 768, 12, 125e6),
    "gpt_350m": (24, 1024, 16, 350e6),
    "gpt_760m": (24, 1536, 16, 760e6),
    "gpt_1_3b": (24, 2048, 16, 1.3e9),
    "gpt_2_7b": (32, 2560, 32, 2.7e9),
    "gpt_6_7b": (32, 4096, 32, 6.7e9),
    "gpt_13b": (40, 5120, 40, 13e9),
    "gpt_30b": (48, 7168, 56, 30e9),
    "gpt_175b": (96, 12288, 96, 175e9),
}


@pytest.mark.parametrize(("name", "row"), GPT_TABLE.items())
def test_the_gpt_models_are_the_papers(name: str, row: tuple[int, int, int, float]) -> None:
    model = compose([f"model={name}"]).config.model
    layers, width, heads, parameters = row
    assert (model.num_layers, model.hidden_size, model.num_heads) == (layers, width, heads)
    assert (model.ffn_hidden_size, model.vocab_size, model.max_seq_len) == (4 * width, 50257, 2048)
    assert (model.positions, model.norm, model.activation) == (
        Positions.learned,
        Norm.layernorm,
        Activation.gelu,
    )
    assert num_parameters(model) == pytest.approx(parameters, rel=0.03)


# Parameters as Meta's model cards give them.
@pytest.mark.parametrize(("name", "parameters"), [("llama_1b", 1.24e9), ("llama_8b", 8.03e9), ("llama_70b", 70.6e9)])
def test_the_llama_models_have_their_parameters(name: str, parameters: float) -> None:
    assert num_parameters(compose([f"model={name}"]).config.model) == pytest.approx(parameters, rel=0.005)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(CONF)))
def test_no_name_is_a_yaml_boolean_and_every_file_says_what_it_is(file: Path) -> None:
    assert file.stem.lower() not in {"on", "off", "yes", "no", "y", "n", "true", "false", "null"}
    comments = [line for line in file.read_text().splitlines() if line.startswith("#") and "@package" not in line]
    assert comments


def test_every_group_folder_is_known_and_every_group_is_a_folder() -> None:
    assert {folder.name for folder in CONF.iterdir() if folder.is_dir()} == {*GROUPS, "sweep"}
    assert set(GROUPS) - {"experiment"} <= set(key_types())


def test_every_field_of_a_choice_is_set_once() -> None:
    for file in FILES:
        keys = [line.split(":")[0] for line in file.read_text().splitlines() if line[:1].isalpha()]
        assert len(keys) == len(set(keys)), file
        assert isinstance(yaml.safe_load(file.read_text()), dict), file

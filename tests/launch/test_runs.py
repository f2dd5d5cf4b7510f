import pytest

from launch.runs import checkpoint_settings, checkpoint_store, find_run, known_runs
from orchestrator.errors import ConfigError


@pytest.fixture
def root(tmp_path):
    for name in ("quickstart-0123abcd", "tiny-89ef0123"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "plan.json").write_text("{}")
    (tmp_path / "runs" / "not-a-run").mkdir()
    return tmp_path / "runs"


def test_a_run_is_found_by_its_id_or_its_folder(root):
    assert find_run("tiny-89ef0123", root).path == root / "tiny-89ef0123"
    assert find_run(f"{root}/tiny-89ef0123/").run_id == "tiny-89ef0123"
    assert sorted(known_runs(root)) == ["quickstart-0123abcd", "tiny-89ef0123"]


def test_a_near_miss_is_suggested(root):
    with pytest.raises(ConfigError, match="did you mean quickstart-0123abcd") as caught:
        find_run("quickstart-0123abce", root)
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match=r"run not-a-run in .* is not known"):
        find_run("not-a-run", root)


def test_a_root_without_runs_says_so(tmp_path):
    with pytest.raises(ConfigError, match="holds no runs"):
        find_run("x", tmp_path / "nowhere")


def test_checkpoints_lie_in_the_run_or_where_its_config_says(root, tmp_path):
    run = find_run("tiny-89ef0123", root)
    assert checkpoint_store(run).where("") == str(root / "tiny-89ef0123" / "checkpoints")
    run.config.write_text("checkpoint: {url: null, keep_last: 5}\n")
    assert checkpoint_store(run).where("") == str(root / "tiny-89ef0123" / "checkpoints")
    assert checkpoint_settings(run)["keep_last"] == 5
    run.config.write_text(f"checkpoint:\n  url: {tmp_path}/elsewhere\n")
    assert checkpoint_store(run).where("") == f"{tmp_path}/elsewhere"
    run.config.write_text("checkpoint:\n  url: memory://elsewhere\n")
    assert checkpoint_store(run).where("a") == "memory://elsewhere/a"


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.getcwd []"])
def test_a_config_that_is_no_plain_yaml_is_one_sentence(root, text):
    run = find_run("tiny-89ef0123", root)
    run.config.write_text(text)
    with pytest.raises(ConfigError, match=r"config.yaml can't be read") as caught:
        checkpoint_store(run)
    assert "\n" not in str(caught.value)

"""`phalanx plan`: the words, the refusals, and what is not imported."""

import json
import subprocess
import sys

import pytest
from golden_texts import check_golden
from tiny_plan import GPT3, TINY, config_of, manifest_of

from launch.plan import EXAMPLES, run
from orchestrator.codec import encode
from orchestrator.errors import EXIT_USAGE, ConfigError
from orchestrator.plan import plan_run


def test_gpt3_on_1024_gpus_plans_anywhere(capsys):
    assert run(GPT3) == 0
    out = capsys.readouterr().out
    check_golden("plan_gpt_175b_1024.txt", out)
    assert "175 B" in out


def test_quickstart_golden(capsys):
    assert run(["experiment=quickstart", "data.path=null"]) == 0
    check_golden("plan_quickstart.txt", capsys.readouterr().out)


def test_json_is_one_object_with_everything(capsys):
    assert run(["--json", *GPT3]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["ds_config"]["train_batch_size"] == 1024
    assert found["batch"] == {
        "words": "1,024 samples = 1 per micro-batch x 1,024 workers x 1 micro-step; 2,097,152 tokens a step",
        "micro_steps": 1,
        "tokens_per_step": 2_097_152,
    }
    assert len(found["placement"]["bundles"]) == 128
    assert len(found["placement"]["ranks"]) == 1024
    assert found["memory_bytes"] < found["memory_limit_bytes"] == 80 * 10**9
    assert found["fillable_memory_bytes"] == 73_600_000_000
    rank = found["plan"]["memory_by_stage"]["3"]
    assert found["activations"]["checkpointing"]["on"] == rank["activations"] + rank["logits"]
    assert found["activations"]["checkpointing"]["on"] < found["activations"]["checkpointing"]["off"]
    # 12 bytes of each parameter at the whole store's 100 GB/s, and a second; read twice, to verify.
    transfer_s = 12 * found["plan"]["parameters"] / 100e9
    checkpoint = found["checkpoint"]
    assert checkpoint["bytes"] == 12 * found["plan"]["parameters"]
    assert checkpoint["assumed"]["write_s"] == pytest.approx(1 + transfer_s)
    assert checkpoint["assumed"]["read_s"] == pytest.approx(1 + 2 * transfer_s)
    assert checkpoint["written_share"] == pytest.approx((1 + transfer_s) / (100 * sum(found["step_time_s"].values())))
    assert found["problems"] == []


def test_a_plan_that_lacks_memory_is_shown_and_refused(capsys):
    overrides = ["model=gpt_13b", "cluster=h100x8", "train=bf16", "train.micro_batch_size=1"]
    with pytest.raises(ConfigError) as error:
        run(["--json", *overrides])
    assert error.value.exit_code == EXIT_USAGE
    assert json.loads(capsys.readouterr().out)["problems"] == list(error.value.problems)
    assert "parallel.zero_stage=1 with train.micro_batch_size=1 needs" in str(error.value)
    # What is proposed works.
    assert "; parallel.zero_stage=" in str(error.value)
    proposed = str(error.value).split("; ")[1].split(" needs ")[0].split(" ")
    assert run([*overrides, *proposed]) == 0


def test_a_gpu_filled_to_99_percent_is_refused_by_plan_as_it_is_by_fit(capsys):
    words = [
        "model=gpt_1_3b",
        "cluster=h100x8",
        "train=bf16",
        "train.global_batch_size=8",
        "train.micro_batch_size=1",
    ]
    assert run(["--json", *words]) == 0
    needed = json.loads(capsys.readouterr().out)["memory_bytes"]
    tight = [*words, f"cluster.memory_bytes_per_worker={int(needed / 0.99)}"]
    with pytest.raises(ConfigError, match=r"may be filled \(.* assumed for fragmentation and the CUDA context\)"):
        run(tight)
    assert "does not fit in" in (out := capsys.readouterr().out)
    assert "107%, with" in out  # 99 and 8
    assert run(["--fit", *tight]) == 0
    assert run([*words, f"cluster.memory_bytes_per_worker={int(needed / 0.92) + 2}"]) == 0
    assert "100%, with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "marked"),
    [
        (["parallel.activation_checkpointing=true"], "  > on"),
        (["parallel.activation_checkpointing=false"], "  > off"),
    ],
)
def test_the_policy_in_use_is_marked_and_makes_the_rank_s_sum(capsys, words, marked):
    assert run(["experiment=quickstart", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(index for index, line in enumerate(lines) if line.startswith("  checkpointing"))
    off, on = (line.split() for line in lines[head + 1 : head + 3])
    assert [line for line in lines[head + 1 : head + 3] if ">" in line] == [
        line for line in lines if line.startswith(marked)
    ]
    totals = [float(cells[-2]) for cells in (off, on)]
    assert totals[1] < totals[0]


def test_checkpoints_that_storage_cannot_keep_up_with_are_told(capsys):
    words = [*GPT3, "train.steps=100"]
    assert run(["--json", *words, "checkpoint.every_steps=1"]) == 0
    share = json.loads(capsys.readouterr().out)["checkpoint"]["written_share"]
    least = -int(-share // 1)
    for every_steps, is_told in ((least - 1, True), (least, False)):
        assert run([*words, f"checkpoint.every_steps={every_steps}"]) == 0
        out = capsys.readouterr().out
        assert (f"storage keeps up from checkpoint.every_steps={least}" in out) is is_told
        assert ("of the time one is written" in out) is not is_told
    assert run([*words, "checkpoint.every_steps=0"]) == 0
    out = capsys.readouterr().out
    assert "to verify and read, assumed at 100.0 GB/s" in out
    assert "of the time one is written" not in out


def test_the_manifest_is_read_where_there_is_one(tmp_path, capsys):
    overrides = [
        "experiment=tiny_test",
        "model.vocab_size=99",
        "data.vocab_size=null",
        f"data.path={tmp_path}",
    ]
    assert run(overrides) == 0
    assert "has no manifest.json yet" in capsys.readouterr().out
    (tmp_path / "manifest.json").write_text(manifest_of().to_json())
    with pytest.raises(ConfigError, match=r"model\.vocab_size=99 does not match the tokenizer"):
        run(overrides)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not a manifest that phalanx wrote"):
        run(overrides)


def test_a_run_that_was_started_before_is_planned_as_its_resume(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text(manifest_of().to_json())
    overrides = [*TINY, f"data.path={tmp_path}", f"run.root={tmp_path}", "train.micro_batch_size=2"]
    config = config_of(*overrides)
    first = plan_run(config, manifest_of(), device="cpu")
    with pytest.raises(ConfigError, match="is not divisible"):
        run([*overrides, "cluster.num_workers=3"])
    (tmp_path / first.run_id).mkdir()
    (tmp_path / first.run_id / "plan.json").write_text(json.dumps(encode(first)))
    assert run([*overrides, "cluster.num_workers=3", "train.steps=30"]) == 0
    out = capsys.readouterr().out
    assert "2 per micro-batch x 3 workers x 2 micro-steps, 4 padding rows of zero weight left out" in out
    assert "30 steps, schedule of 20 steps" in out


@pytest.mark.parametrize(
    "example", [line.split()[2:] for line in EXAMPLES.splitlines() if line.startswith("  phalanx plan")]
)
def test_the_examples_of_help_work(example):
    assert run(example) == 0


def test_a_vocabulary_problem_comes_with_all_others(tmp_path):
    (tmp_path / "manifest.json").write_text(manifest_of(train=100).to_json())
    with pytest.raises(ConfigError) as error:
        run([*TINY, f"data.path={tmp_path}", "model.vocab_size=2000", "train.micro_batch_size=3"])
    assert len(error.value.problems) == 3


def test_a_batch_that_does_not_divide_is_refused(capsys):
    with pytest.raises(ConfigError) as error:
        run(["train.global_batch_size=96", "train.micro_batch_size=5", "cluster.num_workers=8"])
    assert str(error.value) == (
        "train.global_batch_size=96 is not divisible by micro_batch_size * world_size = 5 * 8 = 40; use 80 or 120"
    )
    assert capsys.readouterr().out == ""


def test_the_verb_imports_neither_torch_nor_ray():
    code = (
        "import sys; from launch.plan import run; run(sys.argv[1:]);"
        "sys.exit(sorted({'torch', 'ray', 'deepspeed', 'wandb'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *GPT3], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1,024 workers" in done.stdout

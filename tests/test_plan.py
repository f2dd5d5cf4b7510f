"""plan_run and `phalanx plan`: identity, refusals, the words, and what is not imported."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from golden_texts import check_golden
from hypothesis import given
from hypothesis import strategies as st

from launch.compose import compose
from launch.plan import EXAMPLES, run
from launch.plan_text import batch_words, compact, render_plan
from orchestrator.codec import decode, encode
from orchestrator.config import RunConfig
from orchestrator.data.manifest import Manifest, Shard, Split, TokenizerFacts
from orchestrator.errors import EXIT_USAGE, CheckpointMismatchError, ConfigError
from orchestrator.fingerprint import fingerprint, identity_differences
from orchestrator.memory import held_bytes
from orchestrator.placement import place, planned_nodes
from orchestrator.plan import at_world_size, memory_limit_bytes, memory_refusal, plan_run, recorded, run_id_of
from orchestrator.spec import BatchShape, RunPlan

TINY = ["experiment=tiny_test", "data.path=corpus"]
GPT3 = [
    "model=gpt_175b",
    "cluster=h100x64",
    "cluster.num_workers=1024",
    "parallel=zero3",
    "parallel.activation_checkpointing=true",
    "train=bf16",
    "train.global_batch_size=1024",
    "train.micro_batch_size=1",
    "train.steps=143051",
]


def config_of(*overrides: str) -> RunConfig:
    return compose(overrides).config


def split(tokens: int, checksum: str = "0" * 32) -> Split:
    shard = Shard(file="train_00000.bin", tokens=tokens, bytes=2 * tokens, xxh3_128=checksum)
    return Split(documents=3, tokens=tokens, text_bytes=4 * tokens, shards=(shard,))


def manifest_of(train: int = 100_000, validation: int = 10_000, vocab_size: int = 512) -> Manifest:
    return Manifest(
        dtype="uint16",
        tokenizer=TokenizerFacts(file="tokenizer.json", vocab_size=vocab_size, eos_token_id=0, xxh3_128="1" * 32),
        train=split(train),
        validation=split(validation),
        source={},
    )


def plan_of(*overrides: str, manifest: Manifest | None = None, device: str = "cpu") -> RunPlan:
    return plan_run(config_of(*TINY, *overrides), manifest or manifest_of(), device=device)


def test_a_plan_in_numbers():
    plan = plan_of("train.global_batch_size=24", "train.micro_batch_size=3", "cluster.num_workers=4")
    assert plan.batch == BatchShape(global_batch_size=24, micro_batch_size=3, world_size=4, seq_len=64)
    assert (plan.batch.micro_steps, plan.batch.tokens_per_step) == (2, 24 * 64)
    assert (plan.model.vocab_size, plan.model.num_kv_heads) == (512, 2)
    assert (plan.steps, plan.schedule_steps, plan.device) == (20, 20, "cpu")
    assert plan.run_id == f"tiny_test-{plan.fingerprint[:8]}"
    assert plan.peak_flops_per_worker is None
    assert plan.ds_config["gradient_accumulation_steps"] == 2
    assert sorted(plan.memory_by_stage) == [0, 1, 2, 3]


def test_a_plan_survives_json():
    plan = plan_of("run.seed=7")
    assert decode(RunPlan, json.loads(json.dumps(encode(plan)))) == plan


def test_peak_and_memory_come_from_the_hardware_table_on_cuda_only():
    config = config_of(*TINY, "cluster.hardware=h100")
    assert plan_run(config, None, device="cuda").peak_flops_per_worker == 989.5e12
    assert plan_run(config, None, device="cpu").peak_flops_per_worker is None
    assert memory_limit_bytes(config, device="cuda") == 80 * 10**9
    assert memory_limit_bytes(config, device="cpu") is None
    config.cluster.memory_bytes_per_worker = 5
    assert memory_limit_bytes(config, device="cuda") == 5


@pytest.mark.parametrize(
    "change",
    [
        "model.dropout=0.5",
        "model.num_layers=3",
        "run.seed=1",
        "train.global_batch_size=16",
        "train.seq_len=32",
        "optim.lr=0.5",
        "optim.name=sgd",
        "optim.schedule=linear",
        "optim.schedule_steps=500",
        "data.isolate_documents=true",
    ],
)
def test_what_changes_the_training_changes_the_id(change):
    assert plan_of(change).run_id != plan_of().run_id


@pytest.mark.parametrize(
    "change",
    [
        "model.name=other",
        "cluster.num_workers=4",
        "parallel.zero_stage=3",
        "train.micro_batch_size=1",
        "train.precision=bf16",
        "train.steps=1000",
        "train.eval_every_steps=3",
        "checkpoint.every_steps=1",
        "snapshot.every_steps=9",
        "fault.max_restarts=0",
        "tracking.every_steps=5",
        "data.path=moved",
        "parallel.offload=optimizer",
    ],
)
def test_what_may_change_keeps_the_id(change):
    assert plan_of(change).run_id == plan_of().run_id


def test_other_data_and_another_tokenizer_change_the_id_but_file_names_do_not():
    base, plain = manifest_of(), plan_of()
    shard = base.train.shards[0]
    renamed = replace(base, train=replace(base.train, shards=(replace(shard, file="elsewhere.bin"),)))
    assert plan_of(manifest=renamed).run_id == plain.run_id
    damaged = replace(base, train=replace(base.train, shards=(replace(shard, xxh3_128="2" * 32),)))
    assert plan_of(manifest=damaged).identity["data.train"] != plain.identity["data.train"]
    other = replace(base, tokenizer=replace(base.tokenizer, xxh3_128="3" * 32))
    assert plan_of(manifest=other).run_id != plain.run_id


def test_run_id_of_is_the_plan_s_and_an_explicit_id_wins():
    config = config_of(*TINY)
    assert run_id_of(config, manifest_of()) == plan_of().run_id
    assert plan_of("run.id=mine").run_id == "mine"
    assert run_id_of(config_of(*TINY, "run.id=mine"), manifest_of()) == "mine"


@given(
    st.dictionaries(st.text(max_size=5), st.integers() | st.none() | st.floats(allow_nan=False, allow_infinity=False))
)
def test_a_fingerprint_is_16_hex_digits_whatever_the_order_and_survives_json(found):
    digits = fingerprint(found)
    assert len(digits) == 16
    assert int(digits, 16) >= 0
    assert fingerprint(dict(reversed(found.items()))) == digits
    assert fingerprint(json.loads(json.dumps(found))) == digits


def test_the_fingerprint_is_stable_between_releases():
    """A change here orphans everybody's runs: the same command would no longer find its folder."""
    assert fingerprint({"a": 1, "b": [0.9, 0.95], "c": None, "d": "cosine"}) == "57de302d91eec46d"


def test_differences_name_both_values():
    old = {"model.hidden_size": 64, "optim.schedule_steps": None, "run.seed": 1}
    assert identity_differences(old, old, run_id="demo") == []
    assert identity_differences(old, old | {"model.hidden_size": 128}, run_id="demo") == [
        "model.hidden_size was 64 when run demo started, now 128; start another run (run.id=...) or set it back"
    ]
    assert identity_differences(old, old | {"optim.schedule_steps": 5}, run_id="demo")[0].startswith(
        "optim.schedule_steps was null when run demo started, now 5;"
    )


def test_a_resume_keeps_the_schedule_of_the_first_start():
    first = plan_of()
    longer = plan_run(config_of(*TINY, "train.steps=50"), manifest_of(), device="cpu", resumed=recorded(first))
    assert (longer.steps, longer.schedule_steps) == (50, 20)
    assert (longer.run_id, longer.fingerprint) == (first.run_id, first.fingerprint)


def test_a_resume_may_be_uneven_and_a_first_start_may_not():
    overrides = ["train.global_batch_size=10", "train.micro_batch_size=2", "cluster.num_workers=3"]
    first = plan_of(*overrides, "cluster.num_workers=5")
    config = config_of(*TINY, *overrides)
    with pytest.raises(ConfigError, match="is not divisible by micro_batch_size"):
        plan_run(config, manifest_of(), device="cpu")
    resized = plan_run(config, manifest_of(), device="cpu", resumed=recorded(first))
    assert (resized.batch.micro_steps, resized.batch.is_even) == (2, False)
    assert resized.ds_config["train_batch_size"] == 12
    assert resized.run_id == first.run_id


@given(st.integers(1, 64), st.integers(1, 8), st.integers(1, 9))
def test_at_any_world_size_it_is_the_same_run(global_batch_size, micro_batch_size, world_size):
    words = [f"train.global_batch_size={micro_batch_size * global_batch_size}", "cluster.num_workers=1"]
    config = config_of(*TINY, f"train.micro_batch_size={micro_batch_size}", *words)
    plan = plan_run(config, None, device="cpu")
    resized = at_world_size(config, plan, world_size)
    assert (resized.run_id, resized.identity, resized.schedule_steps) == (
        plan.run_id,
        plan.identity,
        plan.schedule_steps,
    )
    assert resized.batch.tokens_per_step == plan.batch.tokens_per_step
    ds_config = resized.ds_config
    assert ds_config["train_micro_batch_size_per_gpu"] == micro_batch_size
    rows = micro_batch_size * world_size * ds_config["gradient_accumulation_steps"]
    assert ds_config["train_batch_size"] == rows
    assert 0 <= rows - resized.batch.global_batch_size < micro_batch_size * world_size
    assert at_world_size(config, resized, 1) == plan


def test_what_min_workers_would_need_is_refused_before_it_is_needed():
    words = ["cluster.num_workers=8", "train.global_batch_size=8", "train.micro_batch_size=1"]
    roomy = config_of(*TINY, *words)
    plan = plan_run(roomy, None, device="cpu")
    needed = [held_bytes(at_world_size(roomy, plan, size).memory_by_stage[plan.zero_stage], "cpu") for size in (8, 2)]
    assert needed[0] < needed[1]
    limit = f"cluster.memory_bytes_per_worker={needed[1] - 1}"
    assert memory_refusal(config_of(*TINY, *words, limit), plan) is None
    refusal = memory_refusal(config_of(*TINY, *words, limit, "cluster.min_workers=2"), plan)
    assert refusal is not None
    assert refusal.startswith("with cluster.min_workers=2 left, parallel.zero_stage=")
    assert memory_refusal(config_of(*TINY, *words, limit, "cluster.min_workers=8"), plan) is None


def test_a_resume_as_another_run_is_refused_with_every_difference():
    first = recorded(plan_of("run.id=demo"))
    config = config_of(*TINY, "run.id=demo", "run.seed=9", "optim.lr=0.5")
    with pytest.raises(CheckpointMismatchError) as error:
        plan_run(config, manifest_of(), device="cpu", resumed=first)
    assert error.value.exit_code == EXIT_USAGE
    assert error.value.problems == (
        "optim.lr was 0.001 when run demo started, now 0.5; start another run (run.id=...) or set it back",
        "run.seed was 1234 when run demo started, now 9; start another run (run.id=...) or set it back",
    )


@pytest.mark.parametrize(("first", "then"), [([], ["optim.schedule_steps=20"]), (["optim.schedule_steps=20"], [])])
def test_naming_the_schedule_s_length_on_resume_is_no_difference(first, then):
    started = plan_of("run.id=demo", *first)
    again = plan_run(config_of(*TINY, "run.id=demo", *then), manifest_of(), device="cpu", resumed=recorded(started))
    assert (again.schedule_steps, again.fingerprint) == (20, started.fingerprint)
    with pytest.raises(CheckpointMismatchError, match=r"optim\.schedule_steps was"):
        plan_run(
            config_of(*TINY, "run.id=demo", "optim.schedule_steps=21"),
            manifest_of(),
            device="cpu",
            resumed=recorded(started),
        )


@pytest.mark.parametrize("vocab_size", [4096, 4097, 4223])
def test_a_vocabulary_may_be_the_tokenizer_s_or_its_padding(vocab_size):
    plan = plan_of(f"model.vocab_size={vocab_size}", "data.vocab_size=null", manifest=manifest_of(vocab_size=4096))
    assert plan.model.vocab_size == vocab_size


@pytest.mark.parametrize("vocab_size", [99, 4095, 4224])
def test_a_vocabulary_that_does_not_match_is_refused(vocab_size):
    with pytest.raises(ConfigError) as error:
        plan_of(f"model.vocab_size={vocab_size}", "data.vocab_size=null", manifest=manifest_of(vocab_size=4096))
    assert str(error.value) == (
        f"model.vocab_size={vocab_size} does not match the tokenizer of data.path=corpus: 4096 tokens; "
        f"set model.vocab_size=4096 (or null), or prepare the data again with data.vocab_size={vocab_size}"
    )


@pytest.mark.parametrize(
    ("overrides", "vocab_size"),
    [
        (["model.vocab_size=1000", "data.vocab_size=null"], 1000),
        (["data.vocab_size=3000"], 3008),
        (["data.vocab_size=null"], 8192),
    ],
)
def test_without_data_the_vocabulary_is_assumed(overrides, vocab_size):
    plan = plan_run(config_of(*TINY, *overrides), None, device="cpu")
    assert plan.model.vocab_size == vocab_size
    assert plan.identity["data.train"] is None


def test_every_problem_is_reported_at_once():
    config = config_of(*TINY, "model.vocab_size=600", "train.micro_batch_size=3", "train.eval_every_steps=5")
    with pytest.raises(ConfigError) as error:
        plan_run(config, manifest_of(train=400, validation=64, vocab_size=400), device="cpu")
    assert [problem.split(" ")[0] for problem in error.value.problems] == [
        "train.global_batch_size=8",
        "model.vocab_size=600",
        "train.global_batch_size=8",
        "train.eval_every_steps=5",
    ]
    assert error.value.problems[2] == (
        "train.global_batch_size=8 needs 8 rows of 64 tokens for each step, "
        "the train split of data.path=corpus has 6 (400 tokens); "
        "use train.global_batch_size=6 or fewer, a shorter train.seq_len or more text"
    )


def test_a_split_of_exactly_one_global_batch_is_enough():
    assert plan_of(manifest=manifest_of(train=8 * 64 + 1)).batch.global_batch_size == 8
    with pytest.raises(ConfigError, match="has 7"):
        plan_of(manifest=manifest_of(train=8 * 64))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((512, 8, 64), "global batch 512 samples = 8 per pass x 64 workers x 1 pass"),
        ((16, 4, 2), "global batch 16 samples = 4 per pass x 2 workers x 2 passes"),
        ((1, 1, 1), "global batch 1 samples = 1 per pass x 1 worker x 1 pass"),
        (
            (100, 4, 8),
            "global batch 100 samples in 4 per pass x 8 workers x 4 passes = 128 rows, 28 of them padding",
        ),
    ],
)
def test_batch_words(numbers, words):
    global_batch_size, micro_batch_size, world_size = numbers
    batch = BatchShape(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        world_size=world_size,
        seq_len=128,
    )
    assert batch_words(batch) == words


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (307_200, "307,200"),
        (999_999, "1 M"),
        (1_262_720, "1.26 M"),
        (299_998_642_176, "300 B"),
        (12_345e12, "12,345 T"),
    ],
)
def test_compact(number, text):
    assert compact(number) == text


def test_gpt3_on_1024_gpus_plans_anywhere(capsys):
    assert run(GPT3) == 0
    out = capsys.readouterr().out
    check_golden("plan_gpt_175b_1024.txt", out)
    assert "175 B" in out


def test_quickstart_golden(capsys):
    assert run(["experiment=quickstart", "data.path=null"]) == 0
    check_golden("plan_quickstart.txt", capsys.readouterr().out)


def test_render_plan_is_what_the_verb_prints(capsys):
    run(["experiment=quickstart", "data.path=null"])
    printed = capsys.readouterr().out
    config = config_of("experiment=quickstart", "data.path=null")
    plan = plan_run(config, None, device="cpu")
    placement = place(
        num_workers=2,
        workers_per_node=None,
        cpus_per_worker=1,
        gpus_per_worker=0,
        nodes=planned_nodes(config.cluster, device="cpu"),
    )
    assert printed.startswith(render_plan(plan, placement, config) + "\n")


def test_json_is_one_object_with_everything(capsys):
    assert run(["--json", *GPT3]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["ds_config"]["train_batch_size"] == 1024
    assert found["batch"] == {
        "words": "global batch 1,024 samples = 1 per pass x 1,024 workers x 1 pass",
        "micro_steps": 1,
        "tokens_per_step": 2_097_152,
    }
    assert len(found["placement"]["bundles"]) == 128
    assert len(found["placement"]["ranks"]) == 1024
    assert found["memory_bytes"] < found["memory_limit_bytes"] == 80 * 10**9
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
    assert "2 per pass x 3 workers x 2 passes = 12 rows, 4 of them padding" in out
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

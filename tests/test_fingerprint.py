"""What makes two commands the same run."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_plan import TINY, config_of, manifest_of, plan_of

from orchestrator.fingerprint import fingerprint, identity_differences
from orchestrator.plan import run_id_of


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

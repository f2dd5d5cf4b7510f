"""One spec per rank: what they share, what is each one's own, and that a spec is all a worker needs."""

import json
from dataclasses import replace

import pytest

from launch.compose import compose
from orchestrator.codec import decode, encode
from orchestrator.control.specs import own_parts, worker_specs, worker_threads
from orchestrator.data.manifest import Manifest, Shard, Split, TokenizerFacts
from orchestrator.placement import place
from orchestrator.plan import plan_run
from orchestrator.spec import NodeFacts, Placement, ResumePoint, WorkerSpec

SPLIT = Split(
    documents=3,
    tokens=100_000,
    text_bytes=400_000,
    shards=(Shard(file="train_00000.bin", tokens=100_000, bytes=200_000, xxh3_128="0" * 32),),
)
MANIFEST = Manifest(
    dtype="uint16",
    tokenizer=TokenizerFacts(file="tokenizer.json", vocab_size=300, eos_token_id=0, xxh3_128="1" * 32),
    train=SPLIT,
    validation=SPLIT,
    source={"patterns": ["a"]},
)
RESUME = ResumePoint(step=5, checkpoint="somewhere/step_00000005", skipped_windows=(2,))
WORDS = [
    "experiment=tiny_test",
    "data.path=corpus",
    "run.id=run-1",
    "run.seed=99",
    "train.global_batch_size=12",
    "train.micro_batch_size=2",
    "optim.schedule_steps=77",
    "parallel.zero_stage=2",
    "parallel.activation_checkpointing=true",
    "fault.collective_timeout_s=33",
    "cluster.num_workers=3",
]


def placement_of_three() -> Placement:
    nodes = [NodeFacts(name="a", cpus=2, gpus=0), NodeFacts(name="b", cpus=4, gpus=0)]
    return place(num_workers=3, workers_per_node=None, cpus_per_worker=1, gpus_per_worker=0, nodes=nodes)


def specs_of(*words: str) -> list[WorkerSpec]:
    """Three workers on a node of two and a node of one."""
    config = compose([*WORDS, *words]).config
    return worker_specs(
        config,
        plan_run(config, MANIFEST, device="cpu"),
        MANIFEST,
        placement_of_three(),
        attempt=4,
        resume=RESUME,
        checkpoint_url="store",
        store_host="10.0.0.1",
        store_port=4321,
        interfaces={0: "eth0", 1: None},
    )


def test_what_is_each_rank_s_own():
    own = [(s.rank, s.node, s.local_rank, s.local_size, s.network_interface) for s in specs_of()]
    assert own == [(0, 0, 0, 2, "eth0"), (1, 0, 1, 2, "eth0"), (2, 1, 0, 1, None)]


def test_all_else_is_the_same_for_every_rank():
    specs = specs_of()
    same = {"rank": 0, "node": 0, "local_rank": 0, "local_size": 2, "network_interface": "eth0"}
    assert [replace(spec, **same) for spec in specs] == [specs[0]] * 3


def test_a_spec_says_what_was_planned():
    spec = specs_of()[2]
    config = compose(WORDS).config
    plan = plan_run(config, MANIFEST, device="cpu")
    assert (spec.run_id, spec.fingerprint, spec.attempt, spec.world_size) == ("run-1", plan.fingerprint, 4, 3)
    assert (spec.model, spec.batch, spec.ds_config) == (plan.model, plan.batch, plan.ds_config)
    assert (spec.steps, spec.schedule_steps, spec.seed) == (20, 77, 99)
    assert (spec.zero_stage, spec.activation_checkpointing, spec.device) == (2, True, "cpu")
    assert (spec.optim, spec.train, spec.data, spec.checkpoint) == (
        config.optim, config.train, config.data, config.checkpoint,
    )  # fmt: skip
    assert (spec.store_host, spec.store_port, spec.fault.collective_timeout_s) == ("10.0.0.1", 4321, 33.0)
    assert (spec.resume, spec.checkpoint_url, spec.manifest) == (RESUME, "store", MANIFEST)
    assert spec.model.vocab_size == 320


def test_a_spec_travels_as_json():
    for spec in specs_of():
        assert decode(WorkerSpec, json.loads(json.dumps(encode(spec)))) == spec


@pytest.mark.parametrize(
    ("words", "threads"),
    [((), 1), (("cluster.cpus_per_worker=3",), 3), (("cluster.cpus_per_worker=3", "worker.threads=2"), 2)],
)
def test_threads_of_a_rank(words, threads):
    assert worker_threads(compose([*WORDS, *words]).config) == threads


def test_a_ranks_own_part_on_the_encoded_common_spec_is_its_whole_spec():
    specs = specs_of()
    parts = own_parts(placement_of_three(), {0: "eth0", 1: None})
    assert [{**encode(specs[0]), **part} for part in parts] == [encode(spec) for spec in specs]

"""The engine under real DeepSpeed on gloo, against plain torch: every ZeRO stage computes the same training."""

import functools
from pathlib import Path

import pytest
from rank.ranks import Data, Heard, Ranks, open_run, prepare_short_documents, repeat_one_token
from rank.reference import Curve, train_plainly

pytestmark = pytest.mark.real

FP32 = 1e-5
"""Relative."""
BF16 = 5e-3
WORDS = ("optim.lr=3e-3", "optim.grad_clip=0.6", "train.steps=6")
LONG = "train.steps=20"


@pytest.fixture(scope="module")
def plain(data: Data, tmp_path_factory: pytest.TempPathFactory):
    """Curve of plain torch for the same overrides."""

    @functools.cache
    def curve(*words: str) -> Curve:
        return train_plainly(open_run(data, tmp_path_factory.mktemp("plain"), *WORDS, *words), data)

    return curve


@pytest.fixture
def train(ranks: Ranks, tmp_path: Path):
    return functools.partial(ranks.run, tmp_path, *WORDS)


def relative(found: list[float], wanted: list[float]) -> float:
    """The largest difference."""
    assert len(found) == len(wanted)
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


def assert_same(heard: Heard, curve: Curve, tolerance: float = FP32) -> None:
    assert relative(heard.losses, curve.losses) < tolerance
    assert relative(heard.grad_norms, curve.grad_norms) < 10 * tolerance
    assert [heard.rows[step].lr for step in sorted(heard.rows)] == pytest.approx(curve.rates, rel=1e-12)


def test_the_reference_learns_and_is_clipped(plain):
    curve = plain(LONG)
    assert curve.losses[-1] < curve.losses[0] - 1.0
    assert min(curve.grad_norms) > 0.6
    assert len(set(curve.rates)) > 15


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_equals_plain_torch(train, plain, stage):
    assert_same(train(LONG, stage=stage), plain(LONG))


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_bf16_stays_near_fp32(train, plain, stage):
    losses = train(LONG, "train.precision=bf16", stage=stage).losses
    assert 1e-6 < relative(losses, plain(LONG).losses) < BF16


@pytest.mark.parametrize(("offload", "stage"), [("optimizer", 1), ("optimizer", 2), ("optimizer", 3), ("params", 3)])
def test_offload_to_the_cpu_changes_nothing(train, plain, offload, stage):
    assert_same(train(f"parallel.offload={offload}", stage=stage), plain())


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize(
    "optimizer",
    [("optim.name=sgd", "optim.lr=0.3", "optim.weight_decay=0"), ("optim.name=adam", "optim.weight_decay=0.01")],
    ids=["sgd", "adam"],
)
def test_other_optimizers(train, plain, optimizer, stage):
    assert_same(train(*optimizer, stage=stage), plain(*optimizer))


def test_without_clipping(train, plain):
    assert_same(train("optim.grad_clip=0", stage=2), plain("optim.grad_clip=0"))


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradient_accumulation_equals_one_pass(train, plain, stage):
    assert_same(train("train.micro_batch_size=1", stage=stage), plain())


@pytest.mark.parametrize("world", [1, 4])
def test_other_world_sizes(train, plain, world):
    assert_same(train(world=world, stage=2), plain())


@pytest.mark.parametrize("stage", [1, 3])
def test_an_uneven_batch_equals_the_even_one(ranks, plain, tmp_path, stage):
    """Eight samples on three ranks, in two micro-steps each, with four rows of padding."""
    even = open_run(ranks.data, tmp_path, *WORDS)
    words = [*WORDS, "cluster.num_workers=3", f"parallel.zero_stage={stage}"]
    run = open_run(ranks.data, tmp_path, *words, like=even)
    assert not run.plan.batch.is_even
    heard = ranks.train(run)
    assert_same(heard, plain())


def test_samples_are_the_same_in_every_world(ranks, tmp_path):
    even = open_run(ranks.data, tmp_path, *WORDS)
    worlds = [1, 2, 3, 4]
    digests = [
        [row.batch_digest for row in ranks.train(
            open_run(ranks.data, tmp_path, *WORDS, f"cluster.num_workers={world}", like=even)
        ).rows.values()]
        for world in worlds
    ]  # fmt: skip
    assert len(set(digests[0])) == 6
    assert digests == [digests[0]] * len(worlds)


def test_dropout_depends_on_the_sample_s_place_and_not_on_the_world(train, plain):
    alone = train("model.dropout=0.2", world=1).losses
    assert relative(train("model.dropout=0.2", world=2, stage=2).losses, alone) < FP32
    assert relative(alone, plain().losses) > 1e-4


def test_dropout_is_drawn_anew_for_each_step_and_rank(ranks, tmp_path):
    """All rows are alike and the learning rate is next to nothing: only the masks tell two passes apart."""
    monotonous = repeat_one_token(ranks.data, tmp_path / "monotonous")
    words = [*WORDS, "train.steps=5", "optim.lr=1e-12", "train.micro_batch_size=1", "train.global_batch_size=4"]

    def losses(rate: float) -> list[float]:
        run = open_run(monotonous, tmp_path, *words, "cluster.num_workers=2", f"model.dropout={rate}")
        return [message["loss_sum"] for message in ranks.train(run).by_kind["step"]]

    assert len(losses(0.0)) == 10
    assert max(losses(0.0)) - min(losses(0.0)) < 1e-4
    with_masks = losses(0.3)
    assert len({round(loss, 4) for loss in with_masks}) == 10
    assert sorted(losses(0.3)) == sorted(with_masks)


@pytest.mark.parametrize("stage", [2, 3])
def test_activation_checkpointing_changes_nothing(train, plain, stage):
    assert_same(train("parallel.activation_checkpointing=true", stage=stage), plain())


def test_activation_checkpointing_draws_the_same_dropout(train):
    dropout = "model.dropout=0.2"
    assert relative(train(dropout, "parallel.activation_checkpointing=true").losses, train(dropout).losses) < FP32


@pytest.mark.parametrize("stage", [2, 3])
def test_isolated_documents_equal_documents_seen_one_by_one(ranks, tmp_path, stage):
    data = prepare_short_documents(tmp_path)
    isolate = "data.isolate_documents=true"
    run = open_run(data, tmp_path, *WORDS, isolate, "cluster.num_workers=2", f"parallel.zero_stage={stage}")
    heard, one_by_one = ranks.train(run), train_plainly(run, data)
    assert_same(heard, one_by_one)
    together = train_plainly(open_run(data, tmp_path, *WORDS), data)
    assert relative(heard.losses, together.losses) > 10 * FP32


def test_evaluation_is_the_mean_over_the_split_s_tokens_in_every_world(train):
    words = ("train.steps=2", "train.eval_every_steps=2", "train.eval_rows=5")
    means = []
    for world, stage in ((1, 0), (2, 1), (3, 3)):
        heard = train(*words, "train.global_batch_size=12", world=world, stage=stage)
        said = heard.by_kind["evaluated"]
        assert sum(m["tokens"] for m in said) == 5 * 32
        means.append(sum(m["loss_sum"] for m in said) / (5 * 32))
    assert means == pytest.approx([means[0]] * 3, rel=FP32)


def test_the_same_world_and_stage_is_the_same_to_the_last_bit(train):
    first, second = train(stage=3), train(stage=3)
    assert first.losses == second.losses
    assert first.grad_norms == second.grad_norms

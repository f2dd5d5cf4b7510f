"""The loader: what it reads, in which order, and how it ends."""

import numpy as np
import pytest
import xxhash
from prepared import stream_of, write_shards

from orchestrator.data.batches import BatchLoader, read_step
from orchestrator.data.digest import rows_digest, sum_digests
from orchestrator.data.order import GlobalOrder, eval_rows_at, rows_at
from orchestrator.data.shards import TokenReader
from orchestrator.errors import DataError
from orchestrator.spec import BatchShape

SEQ_LEN = 7


def shape(world_size: int, global_batch_size: int = 12, micro_batch_size: int = 2) -> BatchShape:
    return BatchShape(
        global_batch_size=global_batch_size,
        micro_batch_size=micro_batch_size,
        world_size=world_size,
        seq_len=SEQ_LEN,
    )


@pytest.fixture
def reader(tmp_path):
    return TokenReader(str(tmp_path), write_shards(tmp_path, [400, 33, 5, 290]), "train", SEQ_LEN)


def loaders(reader: TokenReader, world_size: int, **options) -> list[BatchLoader]:
    order = GlobalOrder(reader.num_rows, seed=11)
    return [BatchLoader(reader, order, shape(world_size), rank, **options) for rank in range(world_size)]


def digests(reader: TokenReader, world_size: int, steps: int) -> list[int]:
    """The batch digest of each step, summed over the ranks of a world."""
    ranks = loaders(reader, world_size)
    result = [sum_digests(loader.next().digest for loader in ranks) for _ in range(steps)]
    for loader in ranks:
        loader.close()
    return result


def test_digest_computed_a_second_way_from_the_files(reader, tmp_path):
    """Contract: sum of xxh3_64 over row id (int64) and tokens (uint32), read with numpy.fromfile."""
    stream = stream_of(tmp_path, "train").astype("<u4")
    expected = []
    for step in range(20):
        rows = GlobalOrder(reader.num_rows, seed=11).rows_of_window(step, 12).tolist()
        hashes = [
            xxhash.xxh3_64(
                row.to_bytes(8, "little") + stream[row * SEQ_LEN : row * SEQ_LEN + SEQ_LEN + 1].tobytes()
            ).intdigest()
            for row in rows
        ]
        expected.append(sum(hashes) % 2**64)
    assert digests(reader, world_size=1, steps=20) == expected


@pytest.mark.parametrize("world_size", [2, 3, 4, 5, 7])
def test_digests_are_the_same_for_every_world(reader, world_size):
    assert digests(reader, world_size, steps=8) == digests(reader, 1, steps=8)


def test_a_batch_holds_what_the_order_says_and_pads_with_weight_zero(reader):
    batch = shape(world_size=5)
    order = GlobalOrder(reader.num_rows, seed=11)
    for rank, loader in enumerate(loaders(reader, world_size=5)):
        with loader:
            step = loader.next()
        rows = rows_at(0, rank, order, batch)
        assert len(step.micro) == batch.micro_steps == 2
        for micro, ids in zip(step.micro, rows, strict=True):
            assert micro.tokens.dtype == np.int64
            assert micro.weights.dtype == np.float32
            assert micro.weights.tolist() == (ids >= 0).tolist()
            assert micro.tokens[ids >= 0].tolist() == reader.rows(ids[ids >= 0]).tolist()
            assert not micro.tokens[ids < 0].any()


@pytest.mark.parametrize(("world_size", "rank"), [(1, 0), (5, 4)])
def test_memory_is_used_again_and_holds_the_right_batch(reader, world_size, rank):
    """Thousands of steps: whole chunks, handed over and filled again, with and without padding."""
    batch, order = shape(world_size), GlobalOrder(reader.num_rows, seed=11)
    places = set()
    with BatchLoader(reader, order, batch, rank) as loader:
        for step in range(15_000):
            found = loader.next()
            places.add(found.micro[0].tokens.ctypes.data)
            if step % 61:
                continue
            rows = rows_at(step, rank, order, batch)
            tokens = np.stack([micro.tokens for micro in found.micro])
            assert found.step == step
            assert (tokens[rows >= 0] == reader.rows(rows[rows >= 0])).all()
            assert not tokens[rows < 0].any()
            assert found.digest == rows_digest(rows[rows >= 0], tokens[rows >= 0])
    assert len(places) < 15_000


def test_a_loader_that_starts_late_gives_what_the_first_would_have(reader):
    (early,) = loaders(reader, 1, prefetch=4)
    (late,) = loaders(reader, 1, start_step=6)
    with early, late:
        for _ in range(6):
            early.next()
        for step in range(6, 10):
            expected, found = early.next(), late.next()
            assert expected.step == found.step == step
            assert expected.digest == found.digest


def test_skipped_windows_are_left_out(reader):
    (skipping,) = loaders(reader, 1, skipped=(0, 2))
    with skipping:
        found = [skipping.next().digest for _ in range(2)]
    every = digests(reader, 1, steps=4)
    assert found == [every[1], every[3]]


def test_evaluation_rows_are_each_read_once(reader):
    batch = shape(world_size=3)
    parts = [read_step(reader, eval_rows_at(rank, 11, batch), step=0) for rank in range(3)]
    whole = read_step(reader, eval_rows_at(0, 11, shape(world_size=1)), step=0)
    assert sum(float(micro.weights.sum()) for part in parts for micro in part.micro) == 11
    assert sum_digests(part.digest for part in parts) == whole.digest


def test_no_rows_are_no_micro_steps(reader):
    assert read_step(reader, eval_rows_at(0, 0, shape(world_size=2)), step=3).micro == ()


def test_what_stops_the_thread_is_raised_once_with_its_cause(tmp_path):
    manifest = write_shards(tmp_path, [400])
    (tmp_path / "train_00000.bin").unlink()
    reader = TokenReader(str(tmp_path), manifest, "train", SEQ_LEN)
    (loader,) = loaders(reader, 1)
    with pytest.raises(DataError, match=r"train_00000\.bin can't be read") as caught:
        loader.next()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(RuntimeError, match="closed"):
        loader.next()
    loader.close()


def test_batches_read_before_the_failure_are_given_first(tmp_path):
    """A shard that is cut off after the manifest was checked: the rows before the cut still come."""
    manifest = write_shards(tmp_path, [400])
    reader = TokenReader(str(tmp_path), manifest, "train", SEQ_LEN)
    order = GlobalOrder(reader.num_rows + 1, seed=3)
    steps = [order.rows_of_window(step, 12) for step in range(10)]
    bad_step = next(step for step, rows in enumerate(steps) if reader.num_rows in rows)
    with BatchLoader(reader, order, shape(1), 0, prefetch=20) as loader:
        assert [loader.next().step for _ in range(bad_step)] == list(range(bad_step))
        with pytest.raises(DataError, match="rank 0 could not read its batch") as caught:
            loader.next()
    assert isinstance(caught.value.__cause__, IndexError)


def test_close_ends_the_thread_and_may_be_called_again(reader):
    (loader,) = loaders(reader, 1)
    loader.next()
    loader.close()
    loader.close()
    assert not loader._thread.is_alive()
    with pytest.raises(RuntimeError, match="closed"):
        loader.next()

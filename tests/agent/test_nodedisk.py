"""Two nodes' disks, with real files, and ranges read from one by the other over real connections."""

import base64
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from saving import make_marker, partition, random_state

from orchestrator.agent.nodedisk import NodeDisk
from orchestrator.agent.peers import PeerCopies
from orchestrator.checkpoint import encryption
from orchestrator.checkpoint.fencing import new_claim
from orchestrator.checkpoint.key import KEY_VARIABLE, Key
from orchestrator.checkpoint.layout import MARKER, PayloadFile, step_folder
from orchestrator.checkpoint.marker import gather_payloads
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.reader import CheckpointReader
from orchestrator.checkpoint.spread import held_steps, reachable_steps
from orchestrator.checkpoint.store import Store
from orchestrator.errors import CheckpointError, FencedError
from orchestrator.rank.rangereads import RemoteFile, open_spread
from orchestrator.spec import ResumePoint

HOST = "127.0.0.1"
SECRET = "s" * 64
SHAPES = {"w": (50, 8), "b": (3,), "v": (7, 3)}
WORLD = 4
"""Ranks 0 and 1 on the first node, 2 and 3 on the second."""


@dataclass
class Node:
    disk: NodeDisk
    copies: PeerCopies

    @property
    def peer(self) -> tuple[str, int]:
        return HOST, self.copies.port


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Node]]:
    made = []
    for number in range(2):
        disk, copies = NodeDisk(str(tmp_path / f"node_{number}"), is_private=False), PeerCopies(HOST)
        copies.trust(SECRET)
        copies.serve_files(disk.folder)
        made.append(Node(disk, copies))
    yield made
    for node in made:
        node.copies.close()


def write_rank(node: Node, step: int, rank: int, attempt: int = 1, key: Key | None = None) -> PayloadFile:
    dealt = partition(random_state(SHAPES, seed=step), WORLD, random.Random(step))
    return write_payload(Store(node.disk.folder), step_folder(step), rank, attempt, dealt[rank], {}, key)


def save(nodes: list[Node], step: int, attempt: int = 1, keep_last: int = 2, key: Key | None = None) -> str:
    """What the ranks' agents and the driver do; the marker's text."""
    payloads = [write_rank(nodes[rank * len(nodes) // WORLD], step, rank, attempt, key) for rank in range(WORLD)]
    files, tensors = gather_payloads(payloads)
    facts = None if key is None else encryption.facts(key.check)
    fields = {"files": files, "tensors": tensors, "encryption": facts}
    text = make_marker(step, attempt=attempt, world_size=WORLD, **fields).to_json()
    for node in nodes:
        node.disk.commit(step, attempt, text, keep_last)
    return text


def reachable(nodes: list[Node]) -> list[int]:
    return [item.step for item in reachable_steps([held_steps(node.disk.held()["steps"]) for node in nodes])]


def payloads_of(node: Node, step: int) -> list[Path]:
    return sorted((node.disk.folder / step_folder(step)).glob("*.safetensors"))


def test_both_nodes_together_have_what_neither_has(nodes):
    save(nodes, 10)
    assert reachable(nodes) == [10]
    assert reachable(nodes[:1]) == reachable(nodes[1:]) == []
    payloads_of(nodes[1], 10)[0].unlink()
    assert reachable(nodes) == []


def test_a_marker_on_one_node_is_enough(nodes):
    """The driver may die between the two."""
    save(nodes, 10)
    (nodes[0].disk.folder / step_folder(10) / MARKER).unlink()
    assert reachable(nodes) == []  # without a marker its payloads are nobody's step
    nodes[0].disk.prepare_restore(10, nodes[1].disk.marker(10), {})
    assert reachable(nodes) == [10]


def test_the_newest_are_kept_and_an_attempt_that_was_lost_further_on_goes_first(nodes):
    for step in (10, 20, 30):
        save(nodes, step)
    assert reachable(nodes) == [30, 20]
    save(nodes, 15, attempt=2)
    assert reachable(nodes) == [30, 15]
    save(nodes, 25, attempt=2)
    assert reachable(nodes) == [25, 15]
    assert sorted(path.name for path in nodes[0].disk.folder.iterdir()) == [step_folder(15), step_folder(25)]


def test_what_was_left_without_a_marker_goes_with_the_next_commit(nodes):
    save(nodes, 10)
    write_rank(nodes[0], 20, 0)
    save(nodes, 30)
    assert not (nodes[0].disk.folder / step_folder(20)).exists()
    assert reachable(nodes) == [30, 10]


def test_an_older_attempt_commits_nothing_more(nodes):
    save(nodes, 10)
    claim = new_claim(2, "run")
    nodes[1].disk.claim(2, claim.content)
    nodes[1].disk.claim(2, claim.content)  # two agents on one host
    with pytest.raises(FencedError, match="attempt 1 may not commit"):
        save(nodes, 20)
    assert nodes[1].disk.held()["newest_attempt"] == 2
    with pytest.raises(FencedError):
        nodes[1].disk.claim(2, new_claim(2, "run").content)


def test_every_byte_is_verified_where_it_lies(nodes):
    text = save(nodes, 10)
    assert [nodes[0].disk.problems(text, [0, 1]), nodes[1].disk.problems(text, [2, 3])] == [[], []]
    path = payloads_of(nodes[1], 10)[1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (problem,) = nodes[1].disk.problems(text, [2, 3])
    assert f"{path} is damaged: its checksum is" in problem
    for node in nodes:
        node.disk.reject(10, problem)
    assert reachable(nodes) == []
    assert path.exists()


def open_on(nodes: list[Node], reader_node: int, step: int, secret: str = SECRET) -> CheckpointReader:
    text = nodes[0].disk.marker(step)
    holders = {path.name: node.peer for node in nodes for path in payloads_of(node, step)}
    nodes[reader_node].disk.prepare_restore(step, text, holders)
    return open_spread(ResumePoint(step=step, is_spread=True), str(nodes[reader_node].disk.folder), secret, None)


@pytest.mark.parametrize("key", [None, Key(bytes(range(32)))], ids=["plain", "encrypted"])
@pytest.mark.parametrize("reader_node", [0, 1])
def test_any_range_is_read_whichever_node_has_it(nodes, reader_node, key, monkeypatch):
    if key is not None:
        monkeypatch.setenv(KEY_VARIABLE, base64.b64encode(key.secret).decode())
    save(nodes, 10, key=key)
    reader = open_on(nodes, reader_node, 10)
    state = random_state(SHAPES, seed=10)
    for name, kinds in state.items():
        for kind, values in kinds.items():
            np.testing.assert_array_equal(reader.read(name, kind), values.reshape(-1))
            for start in range(0, values.size, 5):
                count = min(7, values.size - start)
                expected = values.reshape(-1)[start : start + count]
                np.testing.assert_array_equal(reader.read(name, kind, start, count), expected)


def test_a_connection_that_was_cut_is_made_again_and_a_lost_file_is_named(nodes):
    save(nodes, 10)
    (path, _) = payloads_of(nodes[1], 10)
    file = RemoteFile(nodes[1].peer, SECRET, 10, path.name)
    out = memoryview(bytearray(8))
    assert file.read_into(0, out) == 8
    assert bytes(out) == path.read_bytes()[:8]
    file._connection.close()
    assert file.read_into(path.stat().st_size - 3, out) == 3
    with pytest.raises(CheckpointError, match=r"can't read .* No such file"):
        RemoteFile(nodes[1].peer, SECRET, 99, path.name).read_into(0, out)


@pytest.mark.parametrize("name", [MARKER, f"../{step_folder(10)}/rank_00002.attempt_001.safetensors", "/etc/passwd"])
def test_only_payloads_are_served(nodes, name):
    save(nodes, 10)
    with pytest.raises(CheckpointError, match="is not the name of a payload"):
        RemoteFile(nodes[1].peer, SECRET, 10, name).read_into(0, memoryview(bytearray(1)))


def test_who_does_not_know_the_secret_reads_nothing(nodes):
    save(nodes, 10)
    file = RemoteFile(nodes[1].peer, "x" * 64, 10, payloads_of(nodes[1], 10)[0].name)
    with pytest.raises(CheckpointError):
        file.read_into(0, memoryview(bytearray(1)))


def test_a_disk_that_fails_has_nothing_and_clear_leaves_nothing(nodes, tmp_path):
    (tmp_path / "file").write_text("")
    broken = NodeDisk(str(tmp_path / "file" / "run"), is_private=False)
    assert broken.held() == {"newest_attempt": 0, "steps": []}
    broken.claim(1, b"x")
    with pytest.raises(CheckpointError):
        broken.commit(1, 1, "{}", 2)
    save(nodes, 10)
    payload = payloads_of(nodes[1], 10)[0]
    payload.unlink()
    payload.symlink_to(payload.name)  # to look at it is an error
    assert reachable(nodes) == []
    nodes[0].disk.clear()
    nodes[0].disk.clear()
    assert not nodes[0].disk.folder.exists()

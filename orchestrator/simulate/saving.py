"""The agents' side of a checkpoint: payloads as real ranks write them, but small, into the store in memory."""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from orchestrator.checkpoint.layout import Extent, PayloadFile, payload_name, step_folder
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.retry import ANY, PASSING
from orchestrator.checkpoint.store import Store
from orchestrator.config import CheckpointConfig
from orchestrator.errors import StoreFault
from orchestrator.simulate.files import MemoryFiles
from orchestrator.simulate.nodes import FakeCluster, Node
from orchestrator.simulate.trained import Trained
from orchestrator.simulate.training import Message, Training
from orchestrator.simulate.world import World

RETRY_S = 15.0
STATE_ELEMENTS = 4
"""Two int64 in the place of so many fp32, at the end of the file."""
COUNTERS = {"global_samples": 0, "skipped_steps": 0, "loss_scaler": {}}


class Payloads:
    """One file for each rank: its part of the only tensor is the state that the rank has."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._templates: dict[int, tuple[bytes, dict[str, Any]]] = {}

    def write(
        self, files: MemoryFiles, ranks: Iterable[int], attempt: int, state: Trained
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Put the ranks' payloads; each rank and what it confirms. The bytes are those of the real writer."""
        folder, packed = step_folder(state.step), struct.pack("<qq", *state)
        for rank in ranks:
            template = self._templates.get(rank)
            if template is None:
                template = self._templates[rank] = self._template(rank)
            header, described = template
            data, name = header + packed, payload_name(rank, attempt)
            files.put(f"{folder}/{name}", data)
            yield rank, {**described, "file": name, "xxh3_128": xxhash.xxh3_128_hexdigest(data)}

    def read(self, files: MemoryFiles, step: int, name: str) -> Trained:
        data = files.read(f"{step_folder(step)}/{name}")
        return Trained(*struct.unpack("<qq", data[-4 * STATE_ELEMENTS :]))

    def _template(self, rank: int) -> tuple[bytes, dict[str, Any]]:
        files = MemoryFiles(lambda path, data: None)
        shape = (STATE_ELEMENTS * self._world_size,)
        extent = Extent("weights", "master", shape, STATE_ELEMENTS * rank, STATE_ELEMENTS)
        zeros = np.zeros(STATE_ELEMENTS, "<f4")
        payload: PayloadFile = write_payload(Store("simulated", files=files), "x", rank, 1, [(extent, zeros)], {})
        return files.read(f"x/{payload.file}")[: -4 * STATE_ELEMENTS], payload.to_dict()


@dataclass(eq=False, slots=True)
class Saves:
    """Payloads on their way, of one driver's agents."""

    world: World
    files: MemoryFiles
    payloads: Payloads
    config: CheckpointConfig
    persist_s: float
    under_way: int = 0

    def begin(self, cluster: FakeCluster, training: Training, step: int, sealed_s: float) -> None:
        """A checkpoint is due at `step`."""
        is_last = step == training.end_step
        about: Message = {"step": step, "attempt": training.attempt, "is_last": is_last}
        if self.under_way and not is_last:
            text = "storage has not yet taken the checkpoint before it"
            cluster.emit_of_ranks({**about, "kind": "save_failed", "message": text, "is_skipped": True})
            return
        self.under_way += 1
        limit_s = self.config.final_timeout_s if is_last else self.config.retry_timeout_s
        writers = [(node, list(node.ranks)) for node in cluster.nodes]
        state, deadline_s = training.state_at(step), self.world.now_s + limit_s
        started_s = self.world.now_s
        is_told = False

        def attempt() -> None:
            nonlocal is_told
            fault = self.files.fault
            if fault in (ANY if is_last else PASSING) and self.world.now_s < deadline_s:
                if not is_told:
                    is_told = True
                    self._tell(cluster, writers, {**about, **_failure("save_delayed", fault)})
                self.world.after(RETRY_S, attempt)
                return
            self.under_way -= 1
            if fault is not None:
                self._tell(cluster, writers, {**about, **_failure("save_failed", fault)})
            else:
                seconds = self.world.now_s - started_s
                self._write(cluster, writers, {**about, "kind": "saved", "seconds": seconds}, state)
            if is_last:
                self._leave(cluster, training, step)

        self.world.after(sealed_s + self.persist_s, attempt)

    def _write(
        self, cluster: FakeCluster, writers: list[tuple[Node, list[int]]], saved: Message, state: Trained
    ) -> None:
        saved = {**saved, "counters": COUNTERS}
        nodes = {rank: node.index for node, ranks in writers if node.is_alive for rank in ranks}
        for rank, payload in self.payloads.write(self.files, nodes, saved["attempt"], state):
            cluster.emit({**saved, "rank": rank, "node": nodes[rank], "payload": payload})

    def _leave(self, cluster: FakeCluster, training: Training, step: int) -> None:
        if cluster.training is training and not training.is_halted:
            done = {"kind": "done", "attempt": training.attempt, "step": step, "is_drained": training.is_drained}
            cluster.emit_of_ranks(done)
            training.halt()

    def _tell(self, cluster: FakeCluster, writers: list[tuple[Node, list[int]]], message: Message) -> None:
        for node, ranks in writers:
            for rank in ranks if node.is_alive else ():
                cluster.emit({**message, "rank": rank, "node": node.index})


def _failure(kind: str, fault: StoreFault | None) -> Message:
    return {"kind": kind, "message": f"simulated: {fault}", "fault": None if fault is None else fault.value}

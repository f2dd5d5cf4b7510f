"""One agent per node: starts ranks through a zygote, hears them, tells the controller, stops them.

A plain class: `cluster.py` makes a Ray actor of it, tests use it directly. Calls come from several threads.

Ranks talk to their agent over a socket pair each and print into a pipe each, so that neither a killed rank nor a
missing shared file system loses a line. What they say becomes events: dictionaries with at least
{"kind", "attempt", "rank", "node"}. Kinds from ranks: see loop.py. Kinds of the agent's own:
    output   {"text"}                                     what the rank printed
    exited   {"exit_code", "signal", "is_stopped", "tail", "stack", "reason"}  after everything else from that
             rank; is_stopped where the agent was told to stop it; reason: what the agent knows of its end
    stalled  {}                                           the watchdog finds that this rank hangs
    mark     {"mark"}                                     the driver has asked for it; of no attempt and no rank
    standing_by, standby_lost  {}                         a standby rank is ready for the next attempt; has died
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from orchestrator.agent.agentmemory import AgentMemory
from orchestrator.agent.channel import Channel
from orchestrator.agent.mailbox import Mailbox
from orchestrator.agent.nodedisk import NodeDisk
from orchestrator.agent.oomkills import OomKills
from orchestrator.agent.rankhandle import KILLED, RankHandle
from orchestrator.agent.sending import Peer
from orchestrator.agent.stacks import dump
from orchestrator.agent.standbys import Standbys, lost_standby
from orchestrator.agent.transfers import Transfers
from orchestrator.agent.watchdog import HangLimits, RankProgress
from orchestrator.agent.watching import Watch
from orchestrator.agent.zygotekeeper import ZygoteKeeper
from orchestrator.checkpoint.slots import Share
from orchestrator.control.domains import SLURM_ADDRESS, SLURM_PATTERN
from orchestrator.control.inheritance import attempt_facts
from orchestrator.fleet.surroundings import interface_of
from orchestrator.rank.progress import ProgressReader, create_page
from orchestrator.rank.residentbytes import peak_resident_bytes
from orchestrator.rank.shares import WantedShares

Event = dict[str, Any]


class NodeAgent:
    def __init__(self, node: int, address: str, is_warm: bool, threads: int, zygote_ahead: str | None = None) -> None:
        """`is_warm`: ranks are forked from a process that has imported everything; else each imports for itself.
        `zygote_ahead`: where such a process listens that was started before this agent."""
        self._node = node
        self._address = address
        self._mailbox = Mailbox()
        self._changed = threading.Condition()
        self._ranks: dict[str, RankHandle] = {}
        self._standbys = Standbys()
        self._memory = AgentMemory(address)
        self._transfers = Transfers(self._memory.slots, lambda: list(self._ranks.values()), self._emit)
        self._disk: NodeDisk | None = None
        self._watch: Watch | None = None
        self._oom_kills = OomKills()
        self.attempt_facts: dict[str, Any] | None = None
        """What the last attempt here was, for a driver that did not start it."""
        self._zygote = ZygoteKeeper(
            address,
            threads,
            is_warm=is_warm,
            ahead=zygote_ahead,
            on_answer=self._hear_zygote,
            on_death=self._lose_ranks,
        )

    def describe(self) -> dict[str, Any]:
        return {
            "host": socket.gethostname(),
            "address": self._address,
            "interface": interface_of(self._address),
            "port": self._memory.copies.port,
            "pid": os.getpid(),
            "topology": {name: os.environ[name] for name in (SLURM_ADDRESS, SLURM_PATTERN) if name in os.environ},
        }

    # ---- what the controller calls

    def start_store(self) -> int:
        """Port of the TCPStore on this node; see ZygoteKeeper."""
        return self._zygote.start_store()

    def warm_up(self) -> None:
        """See ZygoteKeeper."""
        self._zygote.warm_up()

    def check_cuda_fork(self) -> str | None:
        """See ZygoteKeeper."""
        return self._zygote.check_cuda_fork()

    def sealed_steps(self) -> dict[Share, list[int]]:
        """Steps of which this node's memory holds a whole snapshot. Ask when the ranks are stopped."""
        return self._memory.slots.sealed_steps()

    def copied_steps(self) -> dict[Share, list[int]]:
        """Of other nodes' ranks: steps of which this node's memory holds a whole copy."""
        return self._memory.copies.sealed_steps()

    def keep_snapshots(self, step: int | None, world_size: int, attempt: int, is_resized: bool = False) -> None:
        """Before `attempt`, of so many ranks, which starts from `step`: no later snapshot is the run's any more. See
        SlotKeeper.keep_only."""
        self._memory.keep_only(step, world_size, attempt, is_resized=is_resized)

    def memory(self) -> dict[str, int]:
        """Bytes of the snapshots and copies that it holds, and the peak of this process without them."""
        return {"bytes": self._memory.num_bytes(), "agent_bytes": peak_resident_bytes()}

    def set_peer(self, secret: str, peer: tuple[str, int] | None) -> None:
        """`peer` (address, port) holds copies of this node's snapshots; who knows the secret may ask for copies."""
        self._memory.copies.trust(secret)
        known, self._transfers.peer = self._transfers.peer, None if peer is None else Peer(*peer, secret)
        if known != self._transfers.peer:
            self._memory.slots.forget_copies()

    def open_disk(self, folder: str, is_private: bool, secret: str) -> None:
        """Checkpoints go to `folder` on this node's own disk, too; who knows the secret may read them."""
        self._disk = NodeDisk(folder, is_private)
        self._memory.copies.trust(secret)
        self._memory.copies.serve_files(self._disk.folder)

    def on_disk(self, operation: str, *arguments: Any) -> Any:
        """One of NodeDisk's methods. Raises CheckpointError."""
        return getattr(self._disk, operation)(*arguments)

    def adopt_copies(self, secret: str, copies: Sequence[tuple[Share, int, tuple[str, int]]]) -> None:
        """Fetch each (share, step, peer): this node has taken a lost one's place. Raises CheckpointError."""
        self._memory.adopt(secret, copies)

    def show_shares(self, wanted: WantedShares) -> None:
        """Before an attempt of another world size: where its ranks find the snapshots that they start from."""
        self._memory.show(wanted)

    def reports(self, world_size: int, step: int) -> dict[int, Event]:
        """rank of a world -> what it had reported of `step`, of those whose snapshot or copy is here."""
        return self._memory.reports(world_size, step)

    def start_ranks(
        self,
        attempt: int,
        common: dict[str, Any],
        own_parts: Sequence[dict[str, Any]],
        limits: HangLimits | None = None,
        standby: int | None = None,
    ) -> None:
        """A rank for each of `own_parts`, which with `common` are its encoded WorkerSpec: forked now, or the standby
        that was forked during attempt `standby`. `limits` are the watchdog's, None leaves it out."""
        self._zygote.revive()
        self._stop_watch()
        self.attempt_facts = attempt_facts(attempt, common, own_parts)
        with self._changed:
            ready = {} if standby is None else self._standbys.take(standby, attempt)
            self._ranks.update(ready)
        self._give_up_standbys()
        specs = {part["rank"]: {**common, **part} for part in own_parts}
        if standby is None:
            started = [self._fork_rank(f"{attempt}.{rank}", attempt, spec) for rank, spec in specs.items()]
        else:
            started = list(ready.values())
            for rank in started:
                with contextlib.suppress(OSError):
                    rank.channel.send({"spec": specs[rank.rank]})
            for number in specs.keys() - {rank.rank for rank in started}:
                self._mailbox.put({"attempt": attempt, "rank": number, "node": self._node, **lost_standby()})
        if limits is not None:
            by_rank = {rank.rank: rank for rank in started}
            self._watch = Watch(self._node, started, limits, lambda n: self._emit(by_rank[n], {"kind": "stalled"}))

    def prepare_standbys(self, attempt: int, common: dict[str, Any], own_parts: Sequence[dict[str, Any]]) -> None:
        """During `attempt`: fork a standby for each rank here; each says `standing_by` once it is ready."""
        self._give_up_standbys()
        for own_part in own_parts:
            self._fork_rank(f"{attempt}.{own_part['rank']} standby", attempt, {**common, **own_part}, is_standby=True)

    def _give_up_standbys(self) -> None:
        with self._changed:
            unwanted = self._standbys.give_up()
        for pid in unwanted:
            self._zygote.ask("kill", pid)

    def _fork_rank(self, label: str, attempt: int, spec: dict[str, Any], *, is_standby: bool = False) -> RankHandle:
        channel, theirs = Channel.pair()
        readable, writable = os.pipe()
        page = create_page(f"progress-{spec['rank']}")
        reader = ProgressReader(page)
        rank = RankHandle(attempt, spec["rank"], spec["world_size"], channel, reader, is_standby=is_standby)
        rank.listen(self._hear_rank, self._read_output, readable)
        with self._changed:  # before the zygote can answer
            self._standbys.add(label, rank) if is_standby else self._ranks.update({label: rank})
        try:
            self._zygote.fork("worker", label, [theirs, writable])
        except OSError:  # the zygote has died just now
            self._rank_exited(rank, KILLED)
        else:
            with contextlib.suppress(OSError):  # a rank that is dead already is told of by its exit
                channel.send_descriptors({"spec": spec, "is_standby": is_standby}, [page])
        os.close(page)
        return rank

    def progress(self) -> list[RankProgress]:
        """How far every live rank is; empty without a watchdog."""
        return self._watch.progress() if self._watch else []

    def dump_stacks(self, why: str) -> dict[int, list[str]]:
        """Every live rank's stacks into its log, after a line that says `why`; rank -> its innermost frames."""
        living = [rank for rank in list(self._ranks.values()) if not rank.is_gone]

        def say(rank: RankHandle, line: str) -> None:
            self._emit(rank, {"kind": "output", "text": f"{line}\n"})

        return dump(living, why, lambda pid: self._zygote.ask("dump", pid), say)

    def _stop_watch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.stop()

    def stop_ranks(self, timeout_s: float, why: str | None = None) -> bool:
        """SIGKILL every live rank; True once all are gone and everything they said is an event.

        `why` where it is not the controller that asks: it is told then that they died, and of what.
        """
        deadline = time.monotonic() + timeout_s
        self._stop_watch()
        if why is not None:
            self._give_up_standbys()
        with self._changed:
            while living := [rank for rank in self._ranks.values() if not rank.is_gone]:
                for rank in living:
                    rank.why_stopped = rank.why_stopped or why
                    if rank.pid is not None:
                        self._zygote.ask("kill", rank.pid)
                self._zygote.end_if_stuck()
                if not self._changed.wait(timeout=min(0.5, max(0.0, deadline - time.monotonic()))) and (
                    time.monotonic() >= deadline
                ):
                    return False
            self._ranks.clear()
        return True

    def leave(self, how: str) -> None:
        """Ask every rank to leave at a step boundary on which they agree: `drain` with a checkpoint in storage,
        `pause` with a snapshot in memory."""
        for rank in list(self._ranks.values()):
            with contextlib.suppress(OSError):
                rank.channel.send({"kind": how})

    def next_events(self, timeout_s: float) -> list[Event]:
        """Everything since the last call; waits for the first event, and briefly for company where that may wait."""
        return self._mailbox.take(timeout_s)

    def mark(self, mark: int) -> None:
        """What has been said so far comes before it."""
        self._mailbox.put({"kind": "mark", "mark": mark, "attempt": 0, "rank": -1, "node": self._node})

    def tell_again(self) -> None:
        """For a new driver: the reports that the last one may not have written down come once more."""
        self._mailbox.tell_again()

    def close(self) -> None:
        """End the zygote, and with it every rank and the store; snapshots on their way to storage arrive first."""
        self._stop_watch()
        self._zygote.end()
        self._memory.close()

    # ---- what the ranks do

    def _emit(self, rank: RankHandle, message: Event) -> None:
        self._mailbox.put({**message, "attempt": rank.attempt, "rank": rank.rank, "node": self._node})

    def _hear_rank(self, rank: RankHandle) -> None:
        while True:
            try:
                message = rank.channel.receive()
                match message["kind"]:
                    case "slots":
                        self._memory.hand_slots(rank, message)
                    case "persist":
                        self._transfers.persist(rank, message)
                    case "replicate":
                        self._transfers.replicate(rank, message)
                    case "shares":
                        self._memory.hand_shares(rank)
                    case "snapshot_rejected":
                        is_emptied = message["is_own"] and self._memory.slots.reject(rank.share, message["step"])
                        self._emit(rank, {**message, "is_emptied": is_emptied})
                    case "settled":
                        self._memory.forget_other_worlds(rank.world_size)
                    case "failed" if rank.is_standby:
                        pass  # its exit says enough
                    case _:
                        self._emit(rank, message)
            except (EOFError, OSError):
                return

    def _read_output(self, rank: RankHandle, descriptor: int) -> None:
        rank.read_output(descriptor, lambda line: self._emit(rank, {"kind": "output", "text": line}))

    def _hear_zygote(self, answer: Event) -> None:
        with self._changed:
            rank = self._ranks.get(answer["label"]) or self._standbys.find(answer["label"])
        if rank is None:  # the store's, or a canary's
            return
        if answer["op"] == "forked":
            self._rank_forked(rank, answer)
        else:
            self._rank_exited(rank, answer)

    def _lose_ranks(self, why: str) -> None:
        """They died with the zygote."""
        for rank in [*self._ranks.values(), *self._standbys.ranks]:
            self._rank_exited(rank, {**KILLED, "reason": f"{KILLED['reason']}{why}"})

    def _rank_forked(self, rank: RankHandle, start: dict[str, Any]) -> None:
        with self._changed:
            rank.pid = start["pid"]
        if rank.is_given_up:
            self._zygote.ask("kill", start["pid"])

    def _rank_exited(self, rank: RankHandle, end: dict[str, Any]) -> None:
        """Told once, whoever notices first; the rank's own threads have everything it said once they end."""
        with self._changed:
            if rank.is_ending:
                return
            rank.is_ending = True
            was_standby = rank.is_standby
            is_missed = was_standby and self._standbys.forget(rank)
        for thread in rank.threads:
            thread.join(timeout=2.0)  # a grandchild may still hold the pipe open
        rank.channel.close()
        if is_missed:
            self._emit(rank, {"kind": "standby_lost"})
        if was_standby:
            return
        how = {key: end[key] for key in ("exit_code", "signal", "is_stopped")}
        reason = end.get("reason") or self._oom_kills.reason(end)
        if how["is_stopped"] and rank.why_stopped is not None:
            how["is_stopped"], reason = False, rank.why_stopped
        self._emit(rank, {"kind": "exited", **how, **rank.last_words(), "reason": reason, "time": time.time()})
        with self._changed:
            rank.is_gone = True
            self._changed.notify_all()

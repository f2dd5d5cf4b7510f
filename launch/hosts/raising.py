"""Bringing a Ray up on hosts by ssh, and taking it down: all of them or none, and never anything else there."""

import contextlib
import selectors
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from launch.hosts.record import ClusterRecord, Host, Started
from launch.hosts.ssh import Connection
from launch.job.gathering import Gathering
from launch.job.lines import Message
from orchestrator.errors import PhalanxError

NODE, ERRAND = "launch.hosts.node", "launch.hosts.errand"


@dataclass(frozen=True, slots=True)
class Answer:
    host: str
    message: Message | None
    """None where the host could not be asked."""
    problem: str = ""


def raise_cluster(
    record: ClusterRecord,
    token: str,
    timeout_s: float,
    *,
    write: Callable[[ClusterRecord], None],
    say: Callable[[str], None],
) -> ClusterRecord:
    """Start Ray on every host and let it stay; `write` gets the record before it does.

    Raises PhalanxError where a host does not come up: then nothing is left on the others.
    """
    with _connections(record, NODE) as connections:
        for host in record.hosts:
            connections[host.name].tell(_start(record, host, token))
        record = _gather(record, connections, timeout_s, say)
        write(record)
        try:
            _keep(connections)
        except BaseException:
            ask_all(record, "end")  # one that was told to stay does not end with its connection
            raise
        for connection in connections.values():
            connection.cut()
    return record


def _keep(connections: Mapping[str, Connection]) -> None:
    for connection in connections.values():
        connection.tell({"op": "keep"})
    kept: set[str] = set()
    for connection, message in _heard(connections, None):
        if message["op"] in ("failed", "died"):
            raise PhalanxError(f"{connection.host} was lost while the cluster came up: {message['text']}")
        kept |= {connection.host} if message["op"] == "kept" else set()
        if len(kept) == len(connections):
            return


def _start(record: ClusterRecord, host: Host, token: str) -> Message:
    return {
        "op": "start",
        "token": token,
        "ports": zlib.crc32(record.mark.encode()),
        "mark": record.mark,
        "cpus": host.cpus,
        "gpus": host.gpus,
        "is_head": host is record.hosts[0],
    }


def _gather(
    record: ClusterRecord, connections: Mapping[str, Connection], timeout_s: float, say: Callable[[str], None]
) -> ClusterRecord:
    """The barrier: the record with the address and what was started on each host."""
    names, started_s = [host.name for host in record.hosts], time.monotonic()
    gathering = Gathering(names, 0, timeout_s, limit="--timeout", where="does it answer? ssh HOST true")
    started: dict[str, Started] = {}
    for connection, message in _heard(connections, started_s + timeout_s):
        gathering.hear(message | {"node": connection.host})
        if message["op"] == "head":
            for other in names[1:]:
                connections[other].tell({"op": "join", "address": message["address"]})
        if message["op"] in ("head", "up"):
            started[connection.host] = Started(pid=message["pid"], born_s=message["born_s"], folder=message["folder"])
            say(f"{connection.host} is up after {time.monotonic() - started_s:.0f} s")
        gathering.check(time.monotonic() - started_s, has_ended=False)
        if gathering.is_complete:
            break
    gathering.check(time.monotonic() - started_s, has_ended=not gathering.is_complete)
    return replace(record, address=gathering.address, started=started)


def ask_all(record: ClusterRecord, op: str) -> list[Answer]:
    """`end` or `look` on every host at once, in the record's order."""
    answers: dict[str, Answer] = {}
    with _connections(record, ERRAND) as connections:
        for name, connection in connections.items():
            started = record.started.get(name)
            known = {"pid": None, "born_s": 0.0, "folder": ""} if started is None else _known(started)
            connection.tell({"op": op, "mark": record.mark, **known})
        for connection, message in _heard(connections, None):
            if message["op"] == "failed":
                answers.setdefault(connection.host, Answer(connection.host, None, message["text"]))
            else:
                answers[connection.host] = Answer(connection.host, message)
            if len(answers) == len(connections):
                break
    return [answers[host.name] for host in record.hosts]


def _known(started: Started) -> dict[str, object]:
    return {"pid": started.pid, "born_s": started.born_s, "folder": started.folder}


@contextlib.contextmanager
def _connections(record: ClusterRecord, module: str) -> Iterator[dict[str, Connection]]:
    """One to each host, all begun at once; what their programs hold ends with the block, unless it was kept."""
    opened: dict[str, Connection] = {}
    try:
        for host in record.hosts:
            opened[host.name] = Connection(host.name, record.ssh, record.python, module)
        yield opened
    finally:
        for connection in opened.values():
            connection.hang_up()
        for connection in opened.values():
            connection.close()


def _heard(connections: Mapping[str, Connection], until_s: float | None) -> Iterator[tuple[Connection, Message]]:
    """What comes, until `until_s` by the monotonic clock or the end of all; an end is heard as `failed`, also one
    that came with the last words that an earlier listener heard."""
    for connection in connections.values():
        if connection.reader.is_closed:
            yield connection, {"op": "failed", "text": connection.last_words()}
    with selectors.DefaultSelector() as selector:
        for connection in connections.values():
            if not connection.reader.is_closed:
                selector.register(connection.reader, selectors.EVENT_READ, connection)
        while selector.get_map():
            left_s = None if until_s is None else until_s - time.monotonic()
            if left_s is not None and left_s <= 0:
                return
            for key, _ in selector.select(left_s):
                connection = key.data
                for message in connection.reader.read():
                    yield connection, message
                if connection.reader.is_closed:
                    selector.unregister(connection.reader)
                    yield connection, {"op": "failed", "text": connection.last_words()}

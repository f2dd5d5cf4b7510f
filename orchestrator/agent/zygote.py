"""The zygote: a clean, single-threaded process that has imported everything a rank needs and forks ranks from itself.

It initialises nothing (no CUDA context, no thread), so a fork is safe and takes milliseconds. Started by a
NodeAgent as `python -m orchestrator.agent.zygote FD`; FD is one end of a SOCK_SEQPACKET pair. It ends, and its
children with it, when the agent's end closes. Where a driver starts it ahead of the agent (zygotehandle.py), FD
listens for the agent, and a third argument is the read end of a pipe that the driver holds: without the driver no
agent comes.

Commands:  {"op": "environment", "environment": {name: value}}: the agent's, for all that is forked from now on
           {"op": "fork", "entry": "worker" | "store" | "canary", "label": str} with descriptors [channel, output]
           {"op": "kill", "pid": int}, {"op": "dump", "pid": int}: SIGKILL; its stacks (stacks.py)
Answers:   {"op": "ready", "seconds": float, "pid"}, {"op": "forked", "label", "pid"},
           {"op": "exited", "label", "pid", "exit_code": int | None, "signal": int | None,
            "is_stopped": bool}; without a pid, and with a "reason", where it could not be forked
"""

import contextlib
import gc
import os
import select
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn, cast

from orchestrator.agent import stacks
from orchestrator.agent.channel import Channel, receive_with_descriptors, send_with_descriptors
from orchestrator.leash import die_with_parent


def main(descriptor: int, warm: bool, driver: int | None = None) -> None:
    started = time.monotonic()
    stacks.register()
    if warm:
        from model.engine import prewarm
        from orchestrator.agent import rendezvous  # noqa: F401
        from orchestrator.rank import worker  # noqa: F401

        prewarm()
        gc.collect()
        gc.freeze()
    agent = socket.socket(fileno=descriptor)
    if driver is not None:
        found = wait_for_agent(agent, driver)
        if found is None:
            return
        agent = found
    with contextlib.suppress(BrokenPipeError):  # the agent has gone already
        send_with_descriptors(agent, {"op": "ready", "seconds": time.monotonic() - started, "pid": os.getpid()}, [])
        Zygote(agent).serve()


def wait_for_agent(listener: socket.socket, driver: int) -> socket.socket | None:
    """The connection of the one agent that is let in; None where the driver ends before there is one."""
    with listener:
        readable, _, _ = select.select([listener, driver], [], [])
        found = listener.accept()[0] if listener in readable else None
    os.close(driver)
    return found


class Zygote:
    def __init__(self, agent: socket.socket) -> None:
        self._agent = agent
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, tuple[str, int]] = {}
        """pid -> (label, pidfd)."""
        self._stopped: set[int] = set()

    def serve(self) -> None:
        self._selector.register(self._agent, selectors.EVENT_READ, None)
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    try:
                        message, descriptors = receive_with_descriptors(self._agent)
                    except (EOFError, ConnectionError):
                        return self._end()
                    self._obey(message, descriptors)
                elif key.data in self._children:
                    self._reap(key.data)

    def _obey(self, message: dict[str, object], descriptors: list[int]) -> None:
        if message["op"] == "kill":
            self._kill(int(str(message["pid"])))
        elif message["op"] == "dump":
            if message["pid"] in self._children:
                os.kill(int(str(message["pid"])), stacks.DUMP_SIGNAL)
        elif message["op"] == "environment":
            os.environ.clear()
            os.environ.update(cast(dict[str, str], message["environment"]))
        elif message["op"] == "ping":
            send_with_descriptors(self._agent, {"op": "pong"}, [])
        elif message["op"] == "fork":
            self._fork(str(message["entry"]), str(message["label"]), descriptors)

    def _kill(self, pid: int) -> None:
        """A child that has died by itself is left as it is, so that its own end is what is told."""
        if pid not in self._children:  # reaped: the number may be another process's by now
            return
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            self._stopped.add(pid)
            os.kill(pid, signal.SIGKILL)

    def _fork(self, entry: str, label: str, descriptors: list[int]) -> None:
        parent, failure = os.getpid(), None
        try:
            pid = os.fork()
        except OSError as error:  # a limit of processes or memory: what is forked already goes on
            pid, failure = -1, error
        if pid == 0:
            self._become(entry, descriptors, parent)
        for descriptor in descriptors:
            os.close(descriptor)
        if failure is not None:
            reason = f"could not be forked ({failure}); raise the node's limits of processes and memory"
            end = {"exit_code": None, "signal": None, "is_stopped": False, "reason": reason}
            send_with_descriptors(self._agent, {"op": "exited", "label": label, "pid": None, **end}, [])
            return
        pidfd = os.pidfd_open(pid)
        self._children[pid] = (label, pidfd)
        self._selector.register(pidfd, selectors.EVENT_READ, pid)
        send_with_descriptors(self._agent, {"op": "forked", "label": label, "pid": pid}, [])

    def _become(self, entry: str, descriptors: list[int], parent: int) -> NoReturn:
        """In the child: drop what is the zygote's, then run the entry; never return into the zygote's loop."""
        exit_code = 1
        try:
            die_with_parent(parent)
            channel, output = descriptors
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            self._agent.close()
            self._selector.close()
            for _, pidfd in self._children.values():
                os.close(pidfd)
            exit_code = _entry(entry)(Channel(channel))
        except SystemExit as stop:
            exit_code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_code)

    def _reap(self, pid: int) -> None:
        label, pidfd = self._children.pop(pid)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        answer = {
            "op": "exited",
            "label": label,
            "pid": pid,
            "exit_code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "is_stopped": pid in self._stopped,
        }
        self._stopped.discard(pid)
        try:
            send_with_descriptors(self._agent, answer, [])
        except OSError:
            self._end()

    def _end(self) -> None:
        for pid in self._children:
            os.kill(pid, signal.SIGKILL)
        for pid in self._children:
            os.waitpid(pid, 0)
        os._exit(0)


def _entry(name: str) -> Callable[[Channel], int]:
    match name:
        case "worker":
            from model.engine import prewarm
            from orchestrator.rank.worker import run_worker

            prewarm()  # a cold zygote has not; else it costs nothing
            return run_worker
        case "store":
            from orchestrator.agent.rendezvous import run_store

            return run_store
        case "canary":
            from model.engine import cuda_problem

            return lambda channel: channel.send({"problem": cuda_problem()}) or 0
        case _:
            raise ValueError(f"unknown entry {name}")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "warm", *map(int, sys.argv[3:]))

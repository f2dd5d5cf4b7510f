"""One host of a cluster that `phalanx cluster up` made: the program that holds its Ray.

`ssh` runs it as `python -m launch.hosts.node`. It hears lines on stdin, as a job's node program does:
    start {"token", "ports", "mark", "cpus", "gpus", "is_head"}   -> head {"address"} where it is the head
    join {"address"}                                              the others -> up
    keep                     the cluster is up: from now on the end of input is no matter -> kept
    end of input before      who started this has failed or died: end
SIGTERM, or the death of this host's Ray, ends it: it kills all that descends from it and removes its folder.
"""

import os
import signal
import sys

from launch.hosts.marks import MARK
from launch.job.lines import LineReader, Message
from launch.job.node import Node, become_subreaper, own_address
from launch.job.waking import Wakeup
from orchestrator.fleet.surroundings import here
from orchestrator.processes import birth_s


class HostNode(Node):
    """A job's node program without SLURM: sizes come with `start`, and it outlives who started it."""

    def __init__(self) -> None:
        super().__init__(None, "", is_head=False)
        self._is_kept = False
        self._sizes: tuple[int, int] = (1, 0)

    def hold(self, reader: LineReader) -> None:
        """Until this host's Ray is to end, or has ended; nothing of it is left then."""
        with Wakeup(signal.SIGCHLD, signal.SIGTERM) as wakeup:
            try:
                while not self._is_over and not self._has_lost_ray:
                    sources = [] if reader.is_closed else [reader]
                    if signal.SIGTERM in wakeup.wait(sources, None):
                        break
                    self._reap()
                    for message in reader.read():
                        self._obey(message)
                    self._is_over |= reader.is_closed and not self._is_kept
            finally:
                self._clear()

    def _obey(self, message: Message) -> None:
        match message["op"]:
            case "start":
                own = here(1)
                cpus, gpus = message["cpus"], message["gpus"]
                self._sizes = (own.cpus if cpus is None else cpus, own.gpus if gpus is None else gpus)
                self._is_head = message["is_head"]
                os.environ[MARK] = message["mark"]  # of all that is started from here
                super()._obey({"op": "start", "token": message["token"], "job": message["ports"]})
            case "keep":
                self._is_kept = True
                self._say("kept")
            case _:
                super()._obey(message)

    def _say(self, op: str, **fields: object) -> None:
        born_s = birth_s(os.getpid())
        super()._say(op, **{"pid": os.getpid(), "born_s": born_s, "folder": self._temp_dir, **fields})

    def _own_address(self) -> str:
        """The head's is the one by which ssh came, where that is no loopback: others reach it there, too."""
        reached = os.environ.get("SSH_CONNECTION", "").split()
        if (
            self._joining is None
            and len(reached) == 4
            and ":" not in reached[2]
            and not reached[2].startswith("127.")
        ):
            return reached[2]
        return own_address(None, self._joining)

    def _share(self) -> tuple[int, int, int | None]:
        return (*self._sizes, None)


def main() -> None:
    become_subreaper()
    HostNode().hold(LineReader(sys.stdin.fileno()))


if __name__ == "__main__":
    main()

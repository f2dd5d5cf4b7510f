"""The barrier before training: which nodes have a Ray, which are missing. Plan half."""

from collections.abc import Sequence

from launch.job.lines import Message
from launch.slurm.jobstate import SlurmError


class Gathering:
    def __init__(
        self,
        hosts: Sequence[str],
        spare_nodes: int,
        timeout_s: float,
        *,
        limit: str = "cluster.start_timeout_s",
        where: str = "see the job's output above for srun's own words",
    ) -> None:
        """`hosts`: the head first; all but `spare_nodes` of them are needed. `limit` is what the timeout is called,
        `where` says where to look for the words of a silent node.
        """
        self._limit = limit
        self._where = where
        self.address: str | None = None
        self.folder = ""
        """Where the head keeps its token and Ray's files."""
        self.up: set[str] = set()
        self.warnings: list[str] = []
        self._hosts = hosts
        self._needed = len(hosts) - spare_nodes
        self._timeout_s = timeout_s
        self._failed: dict[str, str] = {}
        self._is_late = False

    @property
    def is_complete(self) -> bool:
        """Every node is up; late or failed ones only where enough others are."""
        settled = len(self.up) + len(self._failed)
        return self.address is not None and (settled == len(self._hosts) or self._is_late)

    def left_s(self, elapsed_s: float) -> float:
        return max(0.0, self._timeout_s - elapsed_s)

    def hear(self, message: Message) -> None:
        node = message["node"]
        match message["op"]:
            case "head":
                self.address, self.folder = message["address"], message["folder"]
                self.up.add(node)
            case "up":
                self.up.add(node)
            case "failed" | "died":
                self.up.discard(node)
                self._failed[node] = message["text"]

    def check(self, elapsed_s: float, *, has_ended: bool) -> None:
        """Raises SlurmError where Ray can't come up any more; says what is missing where enough is there."""
        is_over = has_ended or elapsed_s >= self._timeout_s
        missing = [host for host in self._hosts if host not in self.up]
        is_short = len(self._hosts) - len(self._failed) < self._needed or self._hosts[0] in self._failed
        if is_short or (is_over and (len(self.up) < self._needed or self.address is None)):
            raise SlurmError(self._refusal(missing, has_ended))
        if is_over or (self._failed and self.is_complete):
            self._is_late = True
            self.warnings = [f"without {', '.join(missing)}: {self._why(missing)}"]

    def _refusal(self, missing: Sequence[str], has_ended: bool) -> str:
        limit = "" if self._failed or has_ended else f" in {self._limit}={self._timeout_s:g}"
        there = f" ({', '.join(sorted(self.up))} did)" if self.up else ""
        return f"{', '.join(missing)} did not start Ray{limit}{there}: {self._why(missing)}"

    def _why(self, missing: Sequence[str]) -> str:
        said = [f"{node}: {text}" for node, text in self._failed.items() if node in missing]
        return "; ".join(said) or f"nothing was heard from there; {self._where}"

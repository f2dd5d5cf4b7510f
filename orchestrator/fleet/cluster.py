"""A Ray cluster: reserving nodes, starting agents, finding dead nodes.

Ray is started if none is there and joined if one is; only what this process started is ever stopped. Ray never
carries training traffic.
"""

import math
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.agent.zygotehandle import ZygoteAhead
from orchestrator.config import ClusterConfig
from orchestrator.control.inheritance import Inherited
from orchestrator.control.preemption import Drain
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.fleet.gang import Gang
from orchestrator.fleet.members import AgentHandle, Replaced
from orchestrator.fleet.raylib import first_line, for_one_run, import_ray, node_name, quiet
from orchestrator.fleet.renewals import Renewals
from orchestrator.fleet.stream import EventStream
from orchestrator.fleet.surroundings import (
    hand_on_token,
    here,
    is_joining,
    knock,
    locked_temp_dir,
    remove_stale_temp_dirs,
)
from orchestrator.fleet.tenancy import Tenancy
from orchestrator.spec import NodeFacts, Placement

NAMESPACE = "phalanx"
LOCAL_OBJECT_STORE_BYTES = 80_000_000
"""Ray's smallest: nothing of ours goes through it."""
START_TRIES = 3
LOOK_S = 1.0


class RayCluster:
    """A Ray cluster, ours or joined. Use as a context manager: leaving it ends what it started."""

    def __init__(
        self, config: ClusterConfig, min_cpus: int, start_zygote: Callable[[Path], ZygoteAhead] | None = None
    ) -> None:
        """`start_zygote` is called before Ray is started here, with a private folder; not where one is joined.

        Raises ConfigError where the address does not answer.
        """
        self._config = config
        self._zygote: ZygoteAhead | None = None
        self._temp_dir: str | None = None
        self._temp_dir_lock: int | None = None
        self._tenancy: Tenancy | None = None
        self._renewals: Renewals | None = None
        self._avoided: Callable[[], frozenset[str]] = frozenset
        self._has_notice: Callable[[], bool] = lambda: False
        self._gang: Gang | None = None
        self.is_ours = not is_joining(config)
        try:
            if self.is_ours:
                self._start_here(min_cpus, start_zygote)
            else:
                self._join(config.address or os.environ["RAY_ADDRESS"])
        except BaseException:  # Ctrl-C, too: a folder with a token must not stay
            self.close()
            raise

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start_here(self, min_cpus: int, start_zygote: Callable[[Path], ZygoteAhead] | None) -> None:
        remove_stale_temp_dirs()
        self._temp_dir, self._temp_dir_lock = locked_temp_dir()
        if start_zygote is not None:
            self._zygote = start_zygote(Path(self._temp_dir))
        token_path = Path(self._temp_dir) / "token"
        token_path.touch(mode=0o600)
        token_path.write_text(secrets.token_hex(32))
        os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token_path))
        os.environ.update(REPORTER_UPDATE_INTERVAL_MS="60000")  # for a dashboard that is not there
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._init_here(min_cpus)
                return
            except Exception as error:  # Ray gives its own processes 30 s, which a loaded machine may need longer
                import_ray().shutdown()
                if not tries_left:
                    raise PlacementError(
                        f"Ray could not be started here in {START_TRIES} tries ({first_line(error)}); try again when"
                        " the machine is less busy, or join a cluster with cluster.address=HOST:PORT"
                    ) from error

    def _init_here(self, min_cpus: int) -> None:
        ray = import_ray()
        with quiet(), for_one_run():
            ray.init(
                num_cpus=here(min_cpus).cpus,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                namespace=NAMESPACE,
                object_store_memory=LOCAL_OBJECT_STORE_BYTES,
                _temp_dir=self._temp_dir,
            )

    def _join(self, address: str) -> None:
        hand_on_token()
        ray = import_ray()
        try:
            knock(address)
            with quiet():
                ray.init(address=address, log_to_driver=False, logging_level="ERROR", namespace=NAMESPACE)
        except Exception as error:
            raise ConfigError(
                f"cluster.address={address} does not answer as a Ray cluster ({first_line(error)}); check the "
                "address and RAY_AUTH_TOKEN_PATH, or leave cluster.address out to start Ray here"
            ) from error

    def address(self) -> str:
        """HOST:PORT at which others join this cluster."""
        return str(import_ray().get_runtime_context().gcs_address)

    def nodes(self) -> list[NodeFacts]:
        """Live nodes and what they have in total, the driver's own first, else by name."""
        ray = import_ray()
        here = ray.util.get_node_ip_address()
        facts = [
            (
                node["NodeManagerAddress"] != here,
                NodeFacts(
                    name=node_name(node),
                    cpus=int(node["Resources"].get("CPU", 0)),
                    gpus=int(node["Resources"].get("GPU", 0)),
                    memory_bytes=int(node["Resources"]["memory"]) if "memory" in node["Resources"] else None,
                ),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        return [fact for _, fact in sorted(facts, key=lambda pair: (pair[0], pair[1].name))]

    def belong_to(
        self,
        tenancy: Tenancy,
        avoided: Callable[[], frozenset[str]] = frozenset,
        has_notice: Callable[[], bool] = lambda: False,
    ) -> None:
        """`avoided`: names of nodes that are taken only where no others have room; `has_notice`: the run was told to
        stop, so nodes are waited for no longer."""
        self._tenancy, self._avoided, self._has_notice = tenancy, avoided, has_notice
        self._renewals = Renewals(tenancy, lambda: self._agents)

    def start_agents(self, placement: Placement, *, is_warm: bool, threads: int) -> list[AgentHandle]:
        """Reserve the placement's bundles and start one agent in each; see `Gang.start`."""
        ahead = self._zygote.path if self._zygote is not None else None
        how = {"is_warm": is_warm, "threads": threads, "zygote_ahead": ahead}
        waiting = {"avoided": self._avoided, "has_notice": self._has_notice}
        self._gang = Gang(self._config, self.tenancy, placement, **how, **waiting)
        self._gang.start()
        return self._gang.agents

    @property
    def tenancy(self) -> Tenancy:
        assert self._tenancy is not None
        return self._tenancy

    @property
    def inherited(self) -> list[Inherited]:
        """What the agents of an earlier driver said last."""
        return self._gang.inherited if self._gang is not None else []

    @property
    def _agents(self) -> list[AgentHandle]:
        return self._gang.agents if self._gang is not None else []

    def replace_agents(self, placement: Placement, nodes: Sequence[int], wait_s: float) -> Replaced:
        """See members.Cluster."""
        assert self._gang is not None
        silent = [agent for agent in self._agents if agent.node in nodes and self._is_silent(agent)]
        return self._gang.replace(nodes, wait_s, silent)

    def has_room(self, placement: Placement, nodes: Sequence[int]) -> bool:
        """See members.Cluster."""
        assert self._gang is not None
        return self._gang.has_room(nodes)

    def has_replacements(self, placement: Placement, nodes: Sequence[int]) -> bool:
        """See members.Cluster."""
        assert self._gang is not None
        return self._gang.has_replacements(nodes)

    def call_all(self, calls: Sequence[tuple[AgentHandle, tuple[object, ...]]], method: str) -> list[Any]:
        """See members.Cluster."""
        ray = import_ray()
        generation = self.tenancy.generation
        asked = {agent.actor.command.remote(generation, method, *arguments): agent for agent, arguments in calls}
        waiting = list(asked)
        while waiting:
            _, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=LOOK_S)
            if any(self._is_silent(asked[reference]) for reference in waiting):
                raise ConnectionError("an agent has not answered in fault.lease_timeout_s")
        try:
            return list(ray.get(list(asked)))
        except ray.exceptions.RayActorError as error:
            raise ConnectionError(f"an agent is gone: {first_line(error)}") from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None

    @property
    def drain(self) -> Drain | None:
        return self._renewals.drain if self._renewals is not None else None

    def call_living(
        self, agents: Sequence[AgentHandle], method: str, *arguments: object, timeout_s: float | None = None
    ) -> list[Any]:
        """See members.Cluster."""
        ray = import_ray()
        asked = {agent.actor.command.remote(self.tenancy.generation, method, *arguments): agent for agent in agents}
        deadline_s = time.monotonic() + (math.inf if timeout_s is None else timeout_s)
        waiting, answered, results = list(asked), [], []
        while waiting and time.monotonic() < deadline_s:
            left_s = deadline_s - time.monotonic()
            ready, waiting = ray.wait(waiting, num_returns=len(waiting), timeout=max(0.0, min(left_s, LOOK_S)))
            answered += ready
            waiting = [reference for reference in waiting if not self._is_silent(asked[reference])]
        for reference in answered:
            try:
                results.append(ray.get(reference))
            except ray.exceptions.RayActorError:
                continue
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from error
        return results

    def _is_silent(self, agent: AgentHandle) -> bool:
        return self._renewals is not None and self._renewals.is_silent(agent)

    def events(self) -> EventStream:
        assert self._renewals is not None
        return EventStream(self._agents, self.tenancy.generation, self._renewals)

    def release(self) -> None:
        """End the agents and their ranks and give the reservation back, where they are not a newer driver's."""
        gang, self._gang = self._gang, None
        renewals, self._renewals = self._renewals, None
        if renewals is not None:
            renewals.close()
        if gang is not None:
            gang.release()

    def close(self) -> None:
        self.release()
        import_ray().shutdown()
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None
        if self._temp_dir is not None:
            shutil.rmtree(self._temp_dir, ignore_errors=True)
        if self._temp_dir_lock is not None:
            os.close(self._temp_dir_lock)
            self._temp_dir_lock = None

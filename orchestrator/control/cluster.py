"""A Ray cluster: reserving nodes, starting agents, finding dead nodes.

Ray is started if none is there and joined if one is; only what this process started is ever stopped. Ray never
carries training traffic.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.config import ClusterConfig
from orchestrator.control.agent import NodeAgent
from orchestrator.control.coming import ComingAgents
from orchestrator.control.domains import domain_of
from orchestrator.control.members import AgentHandle
from orchestrator.control.raylib import first_line, import_ray, quiet
from orchestrator.control.stream import EventStream
from orchestrator.control.surroundings import (
    hand_on_token,
    here,
    is_joining,
    knock,
    locked_temp_dir,
    remove_stale_temp_dirs,
)
from orchestrator.control.zygotehandle import ZygoteAhead
from orchestrator.errors import ConfigError, PlacementError
from orchestrator.spec import NodeFacts, Placement

NAMESPACE = "phalanx"
LOCAL_OBJECT_STORE_BYTES = 80_000_000
"""Ray's smallest: nothing of ours goes through it."""
START_TRIES = 3
LOOK_S = 0.5
"""Between two looks at agents that are being started."""


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
        self._group: Any = None
        self._agents: list[AgentHandle] = []
        self._coming: ComingAgents | None = None
        """For the bundles of lost agents, on nodes that have come."""
        self.is_ours = not is_joining(config)
        if self.is_ours:
            self._start_here(min_cpus, start_zygote)
        else:
            self._join(config.address or os.environ["RAY_ADDRESS"])

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
        # Its log monitor would list the log folder ten times a second, for nobody: 6 ms of CPU every second.
        os.environ.update(RAY_LOG_MONITOR_MANY_FILES_THRESHOLD="0", LOG_NAME_UPDATE_INTERVAL_S="60")
        for tries_left in reversed(range(START_TRIES)):
            try:
                self._init_here(min_cpus)
                return
            except Exception as error:  # Ray gives its own processes 30 s, which a loaded machine may need longer
                import_ray().shutdown()
                if not tries_left:
                    self.close()
                    raise PlacementError(
                        f"Ray could not be started here in {START_TRIES} tries ({first_line(error)}); try again when"
                        " the machine is less busy, or join a cluster with cluster.address=HOST:PORT"
                    ) from error

    def _init_here(self, min_cpus: int) -> None:
        with quiet():
            import_ray().init(
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
                    name=node["NodeManagerHostname"],
                    cpus=int(node["Resources"].get("CPU", 0)),
                    gpus=int(node["Resources"].get("GPU", 0)),
                    memory_bytes=int(node["Resources"]["memory"]) if "memory" in node["Resources"] else None,
                ),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]
        return [fact for _, fact in sorted(facts, key=lambda pair: (pair[0], pair[1].name))]

    def start_agents(self, placement: Placement, *, is_warm: bool, threads: int) -> list[AgentHandle]:
        """Reserve the placement's bundles and start one agent in each; waits until all answer.

        Raises PlacementError where the nodes don't come free in `cluster.start_timeout_s`.
        """
        self._group = import_ray().util.placement_group(
            [_resources(bundle.cpus, bundle.gpus) for bundle in placement.bundles],
            strategy="STRICT_SPREAD" if len(placement.bundles) > 1 else "STRICT_PACK",
        )
        limit_s, nodes = self._config.start_timeout_s, range(len(placement.bundles))
        self._agents = self._described(
            self._start_actors(placement, nodes, limit_s, is_warm=is_warm, threads=threads)
        )
        return self._agents

    def replace_agents(
        self, placement: Placement, lost: Sequence[AgentHandle], *, wait_s: float, is_warm: bool, threads: int
    ) -> list[AgentHandle]:
        """New agents for the bundles of lost ones: Ray moves a dead node's bundle to where there is room.

        The other agents, and the snapshots they hold, stay. Returns all, in the placement's order. Raises
        PlacementError where no node takes the bundles in `wait_s`, or their agents don't start.
        """
        nodes = [agent.node for agent in lost]
        self._agents = [agent for agent in self._agents if agent.node not in nodes]
        coming, self._coming = self._coming, None
        if coming is not None and (coming.nodes != nodes or not _are_up(coming)):
            coming.end()
            coming = None
        if coming is None:
            for agent in lost:
                with contextlib.suppress(Exception):
                    import_ray().kill(agent.actor)
            coming = self._start_actors(placement, nodes, wait_s, is_warm=is_warm, threads=threads)
        self._agents = sorted([*self._agents, *self._described(coming)], key=lambda agent: agent.node)
        return self._agents

    def has_replacements(
        self, placement: Placement, lost: Sequence[AgentHandle], *, is_warm: bool, threads: int
    ) -> bool:
        """Whether the reservation is whole again, and agents are up and warm in the bundles of lost ones."""
        nodes = [agent.node for agent in lost]
        if self._coming is None and self._is_whole():
            actors = self._actors(placement, nodes, is_warm, threads)
            self._coming = ComingAgents(actors, nodes, [actor.warm_up.remote() for actor in actors])
        if self._coming is None:
            return False
        try:
            return self._coming.are_up(0.0)
        except PlacementError:  # that node is gone, too
            self._coming.end()
            self._coming = None
            return False

    def _start_actors(
        self, placement: Placement, nodes: Sequence[int], wait_s: float, *, is_warm: bool, threads: int
    ) -> ComingAgents:
        """One agent in each of the placement's bundles `nodes`, which are reserved within `wait_s`; all answer.

        Where the reservation breaks meanwhile, because Ray has not known yet that a node is gone, it is waited for
        again.
        """
        reserved_by_s, limit_s = time.monotonic() + wait_s, self._config.start_timeout_s
        while True:
            self._wait_for_group(placement, wait_s, max(0.0, reserved_by_s - time.monotonic()))
            up_by_s = time.monotonic() + limit_s
            actors = self._actors(placement, nodes, is_warm, threads)
            coming = ComingAgents(actors, nodes, [actor.describe.remote() for actor in actors])
            try:
                while not coming.are_up(LOOK_S):
                    if not self._is_whole():
                        break
                    if time.monotonic() > up_by_s:
                        raise PlacementError(
                            f"the agents did not start in cluster.start_timeout_s={limit_s:g}; see `ray status`"
                        )
                else:
                    return coming
            except PlacementError:
                coming.end()
                raise
            coming.end()

    def _is_whole(self) -> bool:
        """Whether every bundle of the reservation has a node that lives, as far as Ray knows."""
        return bool(import_ray().util.placement_group_table(self._group)["state"] == "CREATED")

    def _wait_for_group(self, placement: Placement, wait_s: float, left_s: float) -> None:
        if not self._group.wait(timeout_seconds=left_s):
            wanted = ", ".join(f"{bundle.cpus} CPUs and {bundle.gpus} GPUs" for bundle in placement.bundles)
            raise PlacementError(
                f"the cluster has not freed nodes with {wanted} in cluster.start_timeout_s={wait_s:g}; "
                "wait for other jobs, ask for less, or raise the limit"
            )

    def _actors(self, placement: Placement, nodes: Sequence[int], is_warm: bool, threads: int) -> list[Any]:
        ray = import_ray()
        in_bundle = ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        actor_class = ray.remote(_AgentActor)
        return [
            actor_class.options(
                num_cpus=placement.bundles[node].cpus,
                num_gpus=placement.bundles[node].gpus,
                max_concurrency=8,
                max_restarts=0,
                scheduling_strategy=in_bundle(self._group, node),
            ).remote(node, is_warm, threads, self._zygote.path if self._zygote and node == 0 else None)
            for node in nodes
        ]

    def _described(self, coming: ComingAgents) -> list[AgentHandle]:
        ray = import_ray()
        try:
            described = ray.get([actor.describe.remote() for actor in coming.actors])
        except ray.exceptions.RayError as error:
            raise PlacementError(f"an agent did not start ({first_line(error)}); see `ray status`") from error
        return [
            AgentHandle(
                actor,
                node,
                facts["host"],
                facts["address"],
                facts["interface"],
                facts["port"],
                domain_of(facts["host"], facts["labels"], facts["topology"], self._config),
            )
            for actor, node, facts in zip(coming.actors, coming.nodes, described, strict=True)
        ]

    def call(self, agent: AgentHandle, method: str, *arguments: object, timeout_s: float | None = None) -> Any:
        """Call a method of an agent and wait. Raises ConnectionError where its node or process is gone, or does not
        answer in time."""
        return self.call_all([(agent, arguments)], method, timeout_s=timeout_s)[0]

    def call_all(
        self,
        calls: Sequence[tuple[AgentHandle, tuple[object, ...]]],
        method: str,
        *,
        timeout_s: float | None = None,
    ) -> list[Any]:
        """The same method of several agents at once, each with its own arguments; results in order."""
        ray = import_ray()
        references = [getattr(agent.actor, method).remote(*arguments) for agent, arguments in calls]
        try:
            return list(ray.get(references, timeout=timeout_s))
        except ray.exceptions.GetTimeoutError:
            raise ConnectionError(f"an agent has not answered in {timeout_s:g} s") from None
        except ray.exceptions.RayActorError as error:
            raise ConnectionError(f"an agent is gone: {first_line(error)}") from None
        except ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None

    def events(self) -> EventStream:
        return EventStream(self._agents)

    def release(self) -> None:
        """End the agents and their ranks and give the reservation back."""
        ray = import_ray()
        for agent in self._agents:
            with contextlib.suppress(Exception):
                ray.get(agent.actor.close.remote(), timeout=5)
            with contextlib.suppress(Exception):
                ray.kill(agent.actor)
        self._agents = []
        if self._coming is not None:
            self._coming.end()
            self._coming = None
        if self._group is not None:
            with contextlib.suppress(Exception):
                ray.util.remove_placement_group(self._group)
            self._group = None

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


class _AgentActor(NodeAgent):
    """The agent as a Ray actor: it learns its node's address from Ray."""

    def __init__(self, node: int, is_warm: bool, threads: int, zygote_ahead: str | None) -> None:
        super().__init__(node, import_ray().util.get_node_ip_address(), is_warm, threads, zygote_ahead)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "labels": import_ray().get_runtime_context().get_node_labels()}


def _are_up(coming: ComingAgents) -> bool:
    try:
        return coming.are_up(0.0)
    except PlacementError:
        return False


def _resources(cpus: int, gpus: int) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {})}

"""Real ranks without Ray: a NodeAgent in this process, specs from the real plan code, and what the ranks say
gathered, and committed, as the controller does it."""

import itertools
import json
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest

from launch.compose import compose
from orchestrator.agent.agent import NodeAgent
from orchestrator.agent.persist import Saved, save_checkpoint
from orchestrator.agent.watchdog import Position
from orchestrator.checkpoint.layout import step_folder
from orchestrator.checkpoint.lineage import Lineage
from orchestrator.checkpoint.marker import Marker
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode
from orchestrator.config import DataConfig
from orchestrator.control.collect import Gathering, step_row
from orchestrator.control.opening import OpenRun
from orchestrator.control.specs import hang_limits, worker_specs
from orchestrator.data.manifest import Manifest, Shard
from orchestrator.data.prepare import map_in_process, prepare_data
from orchestrator.observe.metrics import StepRow
from orchestrator.placement import planned_placement
from orchestrator.plan import plan_run, recorded
from orchestrator.rank.shares import WantedShares
from orchestrator.runfolder import RunFolder
from orchestrator.spec import ResumePoint, WorkerSpec

ADDRESS = "127.0.0.1"
SECRET = "a secret"
SAFETY_S = 240.0
"""No test waits for this on purpose: what has not come by then never will."""
SMALL = (
    "experiment=tiny_test",
    "train.global_batch_size=8",
    "train.micro_batch_size=2",
    "train.seq_len=32",
    "checkpoint.every_steps=0",
    "checkpoint.keep_last=0",
    "cluster.device=cpu",
)
Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Data:
    path: Path
    manifest: Manifest

    def tokens(self, split: str = "train") -> np.ndarray:
        """The split's whole stream, int64, read as the format says."""
        shards = getattr(self.manifest, split).shards
        return np.concatenate([np.fromfile(self.path / s.file, self.manifest.dtype) for s in shards]).astype(np.int64)


def prepare_small_data(path: Path) -> Data:
    """Three packages of the standard library, a vocabulary of 300."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    config = DataConfig(
        path=str(path),
        source=[str(stdlib / name / "*.py") for name in ("json", "email", "logging")],
        vocab_size=300,
        validation_fraction=0.2,
    )
    return _prepare(config)


def prepare_short_documents(folder: Path) -> Data:
    """Many documents in a row of 32 tokens."""
    texts = [f"{'abcdefghij'[i % 10] * 3} = {i * i % 977}" for i in range(600)]
    (folder / "short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return _prepare(DataConfig(path=str(folder / "short"), source=str(folder / "short.jsonl"), vocab_size=300))


def _prepare(config: DataConfig) -> Data:
    prepared = prepare_data(
        config, None, map_tasks=map_in_process, say=lambda line: None, on_progress=lambda progress: None
    )
    return Data(Path(str(config.path)), prepared.manifest)


def repeat_one_token(data: Data, path: Path) -> Data:
    """Data whose rows are all the same, with the tokenizer of `data`."""
    path.mkdir()
    tokens = np.full(5000, 7, data.manifest.dtype)
    shard = Shard(file="train_00000.bin", tokens=tokens.size, bytes=tokens.nbytes, xxh3_128="0" * 32)
    tokens.tofile(path / shard.file)
    return Data(path, replace(data.manifest, train=replace(data.manifest.train, tokens=tokens.size, shards=(shard,))))


def open_run(data: Data, root: Path, *words: str, like: OpenRun | None = None) -> OpenRun:
    """A run as `train` would open it; `like` is an earlier start of the same run, whose identity it keeps."""
    config = compose([*SMALL, f"data.path={data.path}", f"run.root={root}", *words]).config
    plan = plan_run(config, data.manifest, device="cpu", resumed=None if like is None else recorded(like.plan))
    folder = RunFolder(root / plan.run_id)
    url = config.checkpoint.url or str(folder.checkpoints)
    return OpenRun(config, plan, data.manifest, folder, url, is_resumed=like is not None)


@dataclass
class Heard:
    """What an attempt's ranks have said so far."""

    run: OpenRun
    attempt: int
    resume: ResumePoint
    rows: dict[int, StepRow] = field(default_factory=dict)
    markers: dict[int, Marker] = field(default_factory=dict)
    """Step -> what was committed."""
    by_kind: dict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    exits: dict[int, Message] = field(default_factory=dict)
    order: list[tuple[int, str]] = field(default_factory=list)
    """(rank, kind) of every message."""

    def __post_init__(self) -> None:
        self._steps, self._saves = Gathering(self.world_size), Gathering(self.world_size)

    def summary(self) -> str:
        """How often each kind was heard, for a failure's message."""
        return str({kind: len(messages) for kind, messages in self.by_kind.items()})

    @property
    def world_size(self) -> int:
        return self.run.plan.batch.world_size

    @property
    def losses(self) -> list[float]:
        return [self.rows[step].loss for step in sorted(self.rows)]

    @property
    def grad_norms(self) -> list[float]:
        return [self.rows[step].grad_norm for step in sorted(self.rows)]

    def checkpoint(self, step: int) -> str:
        return f"{self.run.checkpoint_url}/{step_folder(step)}"

    def resume_at(self, step: int, *, is_durable: bool = True) -> ResumePoint:
        """From the checkpoint of `step`; not durable: saved again before any step."""
        return ResumePoint(step=step, source="disk", checkpoint=self.checkpoint(step), is_durable=is_durable)

    def hear(self, message: Message) -> None:
        self.by_kind[message["kind"]].append(message)
        self.order.append((message["rank"], message["kind"]))
        match message["kind"]:
            case "step":
                if (messages := self._steps.add(message)) is not None:
                    row = step_row(self.run.plan, messages)
                    self.rows[row.step] = row
            case "saved":
                if (messages := self._saves.add(message)) is not None:
                    self.markers[message["step"]] = self._commit(message["step"], messages)
            case "exited":
                self.exits[message["rank"]] = message

    def _commit(self, step: int, messages: list[Message]) -> Marker:
        saved = Saved(
            run=self.run,
            attempt=self.attempt,
            claim=None,
            time_s=time.time(),
            step=step,
            skipped_windows=self.resume.skipped_windows,
            branch=self.resume.branch,
            lineage=Lineage(),
            loss=self.rows[step].loss if step in self.rows else None,
            wandb_run_id=None,
        )
        return save_checkpoint(Store(self.run.checkpoint_url), saved, messages).marker

    def check_all_done(self) -> None:
        wrong = {rank: end for rank, end in self.exits.items() if end["exit_code"] != 0}
        tails = ["\n".join(end["tail"]) for end in wrong.values()]
        assert not wrong and len(self.exits) == self.world_size, "\n".join([str(wrong), *tails])


class Ranks:
    """One agent with its store; attempts one after the other."""

    def __init__(self, data: Data, *, is_warm: bool = True) -> None:
        """The zygote takes this process's environment as it is now."""
        self.data = data
        self.agent = NodeAgent(0, ADDRESS, is_warm, threads=1)
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.agent.close()

    def specs(self, run: OpenRun, resume: ResumePoint) -> list[WorkerSpec]:
        """A new attempt's."""
        placement = planned_placement(run.config.cluster, "cpu")
        return worker_specs(
            run.config,
            run.plan,
            run.manifest,
            placement,
            attempt=next(self._numbers),
            resume=resume,
            checkpoint_url=run.checkpoint_url,
            store_host=ADDRESS,
            store_port=self.agent.start_store(),
            interfaces={node: self.agent.describe()["interface"] for node in placement.nodes},
        )

    def start(
        self,
        run: OpenRun,
        resume: ResumePoint | None = None,
        holder: NodeAgent | None = None,
        standby: int | None = None,
    ) -> "LiveAttempt":
        """Use as a context manager: leaving it ends the ranks. `holder` has the snapshots of another world that the
        attempt starts from; else this agent. `standby` is the attempt during which its ranks were forked."""
        resume = resume or ResumePoint()
        specs = self.specs(run, resume)
        heard = Heard(run, specs[0].attempt, resume)
        self.agent.keep_snapshots(resume.step if resume.is_in_memory else None, len(specs), heard.attempt)
        if resume.world_size not in (None, len(specs)):
            self.agent.show_shares(wanted_shares(resume, holder or self.agent))
        self.agent.start_ranks(heard.attempt, *encoded(specs), hang_limits(run.config), standby)
        return LiveAttempt(self.agent, heard)

    def prepare_standbys(self, live: "LiveAttempt") -> None:
        """Returns once a standby is ready for every rank of `live`, which trains on."""
        heard = live.heard
        later = ResumePoint(source="memory", world_size=heard.world_size)
        specs = [replace(spec, attempt=heard.attempt) for spec in self.specs(heard.run, later)]
        self.agent.prepare_standbys(heard.attempt, *encoded(specs))
        live.hear_until(lambda heard: len(heard.by_kind["standing_by"]) == heard.world_size)

    def train(self, run: OpenRun, resume: ResumePoint | None = None, holder: NodeAgent | None = None) -> Heard:
        """To the last step; fails where a rank does."""
        with self.start(run, resume, holder) as live:
            heard = live.hear_all()
        heard.check_all_done()
        return heard

    def run(self, root: Path, *words: str, world: int = 2, stage: int = 1) -> Heard:
        """Plan a fresh run and train it."""
        parallel = [f"cluster.num_workers={world}", f"parallel.zero_stage={stage}"]
        return self.train(open_run(self.data, root, *parallel, *words))


def encoded(specs: list[WorkerSpec]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(what they have in common, what each has of its own)."""
    own = ("rank", "local_rank", "local_size", "node", "network_interface")
    return encode(specs[0]), [{name: getattr(spec, name) for name in own} for spec in specs]


def wanted_shares(resume: ResumePoint, holder: NodeAgent) -> WantedShares:
    address = ADDRESS, holder.describe()["port"]
    holders = tuple((rank, address) for rank in range(resume.world_size or 0))
    return WantedShares(resume.world_size or 0, resume.step, holders, SECRET)


class LiveAttempt:
    def __init__(self, agent: NodeAgent, heard: Heard) -> None:
        self._agent = agent
        self.heard = heard

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.stop_ranks(SAFETY_S)

    def hear_until(self, is_enough: Callable[[Heard], bool]) -> Heard:
        deadline = time.monotonic() + SAFETY_S
        while not is_enough(self.heard):
            if time.monotonic() > deadline:
                pytest.fail(f"heard only {self.heard.summary()}")
            for event in self._agent.next_events(1.0):
                if event["attempt"] == self.heard.attempt:
                    self.heard.hear(event)
        return self.heard

    def hear_all(self) -> Heard:
        """Until every rank is gone."""
        return self.hear_until(lambda heard: len(heard.exits) == heard.world_size)

    def position(self, rank: int) -> Position:
        """What it is doing now, as its page says."""
        (handle,) = [handle for handle in self._agent._ranks.values() if handle.rank == rank]
        return handle.reader.position()

    def pids(self) -> dict[int, int]:
        """Rank -> its pid, as each says at its start."""
        texts = {m["rank"]: m["text"] for m in self.heard.by_kind["output"] if ", pid " in m["text"]}
        return {rank: int(text.rsplit(" ", 1)[1]) for rank, text in texts.items()}

    def hear_pids(self) -> dict[int, int]:
        self.hear_until(lambda heard: len(self.pids()) == heard.world_size)
        return self.pids()

"""The driver of a sweep: starts what fits, follows it through its files, judges it, records all of it.

It trains nothing and holds nothing: each trial is a `phalanx train` with its own run folder, recovery and resume,
and each decision is in study.jsonl before it is acted on. So the driver may be killed at any moment.
"""

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.config import RunConfig
from orchestrator.errors import EXIT_FAILED, EXIT_PREEMPTED, ConfigError, PhalanxError, PlacementError
from orchestrator.fleet.surroundings import is_joining
from orchestrator.observe.metrics import StepRow, read_last_rows
from orchestrator.observe.state import is_held
from orchestrator.observe.units import plural
from orchestrator.spec import NodeFacts
from orchestrator.sweep.folder import SweepFolder
from orchestrator.sweep.host import RayHost
from orchestrator.sweep.judge import Judge
from orchestrator.sweep.packing import Gang, concurrency, fits, gang_of, room_after
from orchestrator.sweep.recipe import Recipe, Watcher, new_parameters
from orchestrator.sweep.space import Parameters
from orchestrator.sweep.study import Part, Record, Study, Trial, TrialState, is_startable, trial_id
from orchestrator.sweep.studylog import StudyLog
from orchestrator.sweep.trial_process import TrialProcess
from orchestrator.sweep.wording import start_words

POLL_S = 0.3
MAX_HOST_LOSSES = 3
"""So many losses of Ray in a row, without a step by any trial between them, are suffered."""


class RayLostError(PhalanxError):
    """The sweep has no Ray any more; the same command goes on."""

    exit_code = EXIT_PREEMPTED


@dataclass(slots=True)
class Live:
    """A trial that runs."""

    process: TrialProcess | None
    """None where another driver started it whose record is lost, or on another host: it can only be watched."""
    gang: Gang
    steps: int
    row: StepRow | None = None
    """The newest of its metrics."""
    is_stopping: bool = False


class SweepDriver:
    """One start of a sweep, with its lock held."""

    def __init__(
        self, folder: SweepFolder, recipe: Recipe, watcher: Watcher, count_notices: Callable[[], int]
    ) -> None:
        self._folder = folder
        self._recipe = recipe
        self._watcher = watcher
        self._count_notices = count_notices
        self._log = StudyLog(folder)
        self._judge = Judge(folder, recipe, self._log)
        self._live: dict[str, Live] = {}
        self._configs: dict[str, RunConfig] = {}
        self._is_searched = False
        self._is_waiting = False
        """Whether a trial waits for nodes though no other runs: the cluster has shrunk."""
        self._first_nodes: Sequence[NodeFacts] = ()
        """What there was at the start."""
        self._host: RayHost | None = None
        self._host_losses = 0

    @property
    def study(self) -> Study:
        return self._log.study

    def run(self) -> int:
        """0 where every trial finished or was pruned, 1 where one failed, 75 where the sweep was told to stop.

        Raises PlacementError where a trial can never fit, before anything is started.
        """
        try:
            if not self._has_work():
                return self._exit_code()
            self._open_host()
            self._first_nodes = self._nodes()
            for parameters in self._recipe.corners:
                gang_of(self._recipe.compose(parameters), self._nodes())
            self._tell_room()
            self._take_over()
            for parameters in self._recipe.listed:
                self._add(parameters)
            while self._turn():
                pass
            return self._exit_code()
        finally:
            if self._host is not None:
                self._host.close()
            self._log.close()

    def _has_work(self) -> bool:
        """Whether there is anything to start or to follow: a sweep that is done needs no Ray."""
        trials = list(self.study.trials.values())
        retries = self._recipe.settings.max_retries
        if any(trial.state is TrialState.running or is_startable(trial, retries) for trial in trials):
            return True
        if any(self._id(parameters) not in self.study.trials for parameters in self._recipe.listed):
            return True
        return self._recipe.suggest(trials, 0) is not None or bool(self._recipe.breed(trials))

    def _exit_code(self) -> int:
        if self._count_notices():
            return EXIT_PREEMPTED
        return EXIT_FAILED if self.study.in_state(TrialState.failed) else 0

    def _turn(self) -> bool:
        """One look at everything; False where nothing runs and nothing is left to start."""
        assert self._host is not None
        if not self._host.wait(POLL_S):
            self._replace_host()
        for name, live in list(self._live.items()):
            self._follow(self.study.trials[name], live)
        if self._count_notices():
            self._stop_all()
            self._is_waiting = False
        else:
            self._start_what_fits()
        rows = {name: live.row for name, live in self._live.items() if live.row is not None}
        self._watcher.progress(self.study, rows, {name: live.steps for name, live in self._live.items()})
        return bool(self._live) or self._is_waiting

    def _open_host(self) -> None:
        self._host = RayHost(self._recipe.base.cluster, self._recipe.min_cpus, self._folder.ray_log)
        while self._host.facts is None:
            if not self._host.wait(POLL_S):
                raise ConfigError(f"no Ray for the sweep's trials: {self._host.last_words()}")

    def _tell_room(self) -> None:
        gang = gang_of(self._recipe.base, self._nodes())
        room = concurrency(self._nodes(), gang, self._recipe.settings.max_concurrent)
        nodes, workers = plural(len(self._nodes()), "node"), plural(self._recipe.base.cluster.num_workers, "worker")
        self._watcher.note(f"{nodes}, {plural(room, 'trial')} of {workers} at a time")

    def _replace_host(self) -> None:
        """Ray is gone and with it the trials' workers: end what is left of them and go on with another Ray."""
        assert self._host is not None
        self._host_losses += 1
        words = self._host.last_words()
        self._watcher.note(f"Ray was lost ({words}); its trials go on from their checkpoints")
        for live in self._live.values():
            live.is_stopping = True
            if live.process is not None:
                live.process.kill()
        self._host.close()
        if self._host_losses > MAX_HOST_LOSSES:
            raise RayLostError(
                f"Ray was lost {self._host_losses} times without a step in between ({words}); mend it, then repeat "
                "the command: nothing is lost"
            )
        try:
            self._open_host()
        except ConfigError as error:
            raise RayLostError(f"{error}; mend it, then repeat the command: nothing is lost") from None

    def _nodes(self) -> Sequence[NodeFacts]:
        assert self._host is not None
        assert self._host.facts is not None
        return self._host.facts.nodes

    def _take_over(self) -> None:
        """What an earlier driver left running; what died with it is found out at the first look."""
        for trial in self.study.in_state(TrialState.running):
            start = self._log.starts[trial.id]
            process = None
            if start["host"] == socket.gethostname():
                process = TrialProcess.find(int(start["pid"]), float(start["born_s"]))
            self._live[trial.id] = self._new_live(trial, process)
            if process is None:
                self._live[trial.id].is_stopping = True  # no fault of its own
            else:
                self._watcher.trial(trial, "is still running: taken over")

    def _new_live(self, trial: Trial, process: TrialProcess | None) -> Live:
        config = self._config_of(trial)
        try:
            gang = gang_of(config, self._nodes())
        except PlacementError:  # it has lost a node
            gang = Gang(())
        return Live(process, gang, config.train.steps)

    def _config_of(self, trial: Trial) -> RunConfig:
        if trial.id not in self._configs:
            self._configs[trial.id] = self._recipe.config(trial)
        return self._configs[trial.id]

    def _follow(self, trial: Trial, live: Live) -> None:
        run = self._folder.trial(trial.id)
        has_ended = (live.process is None or live.process.has_ended()) and not is_held(run.lock)
        rows = read_last_rows(run.metrics, 1)
        if rows and rows[-1] != live.row:
            if live.row is not None:
                self._host_losses = 0
            live.row = rows[-1]
            trial = self._judge.at_rungs(trial, live.row.step, live.steps)
        if has_ended:
            del self._live[trial.id]
            trial = self._judge.at_end(trial, is_stopping=live.is_stopping)
            self._watcher.trial(trial, str(trial.state))
        elif trial.is_condemned and not live.is_stopping and live.process is not None:
            live.is_stopping = True
            self._watcher.trial(trial, f"is stopped at step {max(trial.rungs)}: others were better there")
            live.process.ask_to_stop()

    def _start_what_fits(self) -> None:
        for child in self._recipe.breed(list(self.study.trials.values())):
            self._add(child.parameters, child.part)
        limit = self._recipe.settings.max_concurrent
        while limit is None or len(self._live) < limit:
            trial = self._next_waiting() or self._suggested()
            if trial is None or not self._has_room(self._config_of(trial)):
                self._wait_for_nodes(trial)
                return
            self._start(trial)
            self._is_waiting = False

    def _has_room(self, config: RunConfig) -> bool:
        left = room_after(self._nodes(), [live.gang for live in self._live.values()])
        try:
            return fits(left, gang_of(config, self._nodes()))
        except PlacementError:  # it fitted at the start: another node may come
            return False

    def _wait_for_nodes(self, trial: Trial | None) -> None:
        is_waiting = not self._live and (trial is not None or self._is_waiting or self._is_search_cut_short())
        if is_waiting and not self._is_waiting:
            left, before = len(self._nodes()), plural(len(self._first_nodes), "node")
            who = "the next trial" if trial is None else trial.id
            self._watcher.note(f"{who} waits for nodes: {left} of {before} are left")
        self._is_waiting = is_waiting

    def _is_search_cut_short(self) -> bool:
        """Whether a trial would be suggested if there were room for it."""
        if self._is_searched or self._has_room(self._recipe.base):
            return False
        return self._recipe.suggest(list(self.study.trials.values()), 0) is not None

    def _next_waiting(self) -> Trial | None:
        """The lowest number that waits, was interrupted, or failed and has a retry left."""
        retries = self._recipe.settings.max_retries
        ready = (t for t in self.study.trials.values() if t.id not in self._live and is_startable(t, retries))
        return next(ready, None)

    def _suggested(self) -> Trial | None:
        """A new trial; none while there is no room for one like the first: a later suggestion knows more results."""
        while not self._is_searched and self._has_room(self._recipe.base):
            new = new_parameters(self._recipe, self.study.trials, self._id)
            if new is None:
                self._is_searched = True
            elif (trial := self._add(new)) is not None:
                return trial
        return None

    def _id(self, parameters: Parameters, part: Part | None = None) -> str:
        place = "" if part is None else f"-m{part.member}r{part.round}"
        return trial_id(f"{self._folder.sweep_id}{place}", parameters)

    def _add(self, parameters: Parameters, part: Part | None = None) -> Trial | None:
        """None where it is there already, or makes no run: then it has failed, so that the search goes elsewhere."""
        if self._id(parameters, part) in self.study.trials:
            return None
        trial = self._log.add(self._id(parameters, part), parameters, part)
        try:
            gang_of(self._config_of(trial), self._first_nodes)
        except ConfigError as error:
            trial = self._log.record(Record.trial_refused, trial, reason=str(error))
            self._watcher.trial(trial, f"is refused: {error}")
            return None
        return trial

    def _start(self, trial: Trial) -> None:
        assert self._host is not None
        assert self._host.facts is not None
        if is_held(self._folder.trial(trial.id).lock):  # by a process whose record is lost
            self._live[trial.id] = self._new_live(trial, None)
            return
        words = start_words(trial)
        process = TrialProcess.start(
            self._recipe.command(trial),
            self._host.facts.environment,
            self._folder.log(trial.id),
            is_leashed=not is_joining(self._recipe.base.cluster),
        )
        trial = self._log.record(
            Record.trial_started, trial, pid=process.pid, born_s=process.born_s, host=socket.gethostname()
        )
        self._live[trial.id] = self._new_live(trial, process)
        self._watcher.trial(trial, words)

    def _stop_all(self) -> None:
        """The first notice lets every trial save and leave; a second one ends them at once."""
        for live in self._live.values():
            if live.process is None:
                continue
            if self._count_notices() > 1:
                live.process.kill()
            elif not live.is_stopping:
                live.process.ask_to_stop()
            live.is_stopping = True

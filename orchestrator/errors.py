"""What can go wrong, one sentence each. Every class survives pickling, because it may cross an actor boundary.

Exit codes (contract): 0 done; 1 the run failed; 2 the config or the arguments are wrong; 75 stopped early but
resumable.
"""

from enum import StrEnum

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75


class StoreFault(StrEnum):
    """Why a store failed, by what helps."""

    busy = "busy"
    """Passes by itself: no answer, 5xx, slow down, a cut connection, an input/output error."""
    full = "full"
    """No space, no quota, or a limit on a file's size."""
    denied = "denied"
    """Permissions, credentials, a read-only file system."""
    gone = "gone"
    """The mount, the bucket or the device is not there."""
    other = "other"


class PhalanxError(Exception):
    """Base of what we raise on purpose; `exit_code` is what the command line returns."""

    exit_code = EXIT_FAILED


class ConfigError(PhalanxError):
    """The person can fix it: one sentence per problem, all problems at once."""

    exit_code = EXIT_USAGE

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)

    @property
    def problems(self) -> tuple[str, ...]:
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.args)


class PlacementError(ConfigError):
    """The cluster does not have what the plan needs."""


class DataError(ConfigError):
    """The prepared data or its source is missing, damaged or does not fit the run."""


class CheckpointError(PhalanxError):
    """A checkpoint is missing, damaged or belongs to another run."""


class StoreError(CheckpointError):
    """The store can't be read or written (space, permission, network): says nothing about what it holds."""

    def __init__(self, message: str, fault: StoreFault = StoreFault.other) -> None:
        super().__init__(message)
        self.fault = fault


class CheckpointMismatchError(CheckpointError, ConfigError):
    """A checkpoint or a run folder was made by another model, data or seed; both values are named."""

    exit_code = EXIT_USAGE


class CheckpointKeyError(CheckpointError, ConfigError):
    """The key of an encrypted checkpoint is missing, malformed or another one; never shows the key."""

    exit_code = EXIT_USAGE


class FencedError(CheckpointError):
    """A newer attempt owns the store: this driver may commit nothing more and has to end."""


class SupersededError(PhalanxError):
    """A newer driver of the run has its agents: this one has to end, and to leave everything to it."""


class WorkerFailedError(PhalanxError):
    """The run failed: the digest of the first failing rank, with what to do next."""


class RunFolderError(PhalanxError):
    """What happens to the run can't be written down any more: it has stopped, and goes on once that is mended."""


class LifecycleError(PhalanxError):
    """A pair of state and event that can't happen: a bug in us."""

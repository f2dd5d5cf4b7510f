"""What a run's last checkpoint holds, as one number."""

from orchestrator.checkpoint.commit import committed_steps
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import logical_digest, verify
from orchestrator.runfolder import RunFolder


def final_digest(folder: RunFolder) -> str:
    """Over the logical tensors of the newest committed checkpoint in the run folder; what is wrong with it where it
    does not verify, which equals nothing."""
    store = Store(str(folder.checkpoints))
    steps = committed_steps(store)
    if not steps:
        return f"{folder.run_id} has no checkpoint"
    if problems := verify(store, steps[-1]):
        return f"{folder.run_id} step {steps[-1]}: {'; '.join(problems)}"
    return logical_digest(CheckpointReader(store, read_marker(store, steps[-1])))

"""What a run's config says of retention."""

from orchestrator.checkpoint.retention import MetricOf, Retention
from orchestrator.config import BestMetric, CheckpointConfig
from orchestrator.observe.metrics import read_rows
from orchestrator.runfolder import RunFolder


def retention_of(config: CheckpointConfig) -> Retention:
    return Retention(keep_last=config.keep_last, keep_every_steps=config.keep_every_steps, keep_best=config.keep_best)


def metric_of(folder: RunFolder, config: CheckpointConfig) -> MetricOf | None:
    """What `keep_best` goes by: evaluations from metrics.jsonl, because the evaluation of a step comes after its
    save; None for the loss, which the markers hold."""
    if not config.keep_best or config.best_metric is BestMetric.loss:
        return None
    # After a rollback the row written last is of the newest attempt, as the checkpoint is.
    found = {row.step: row.eval_loss for row in read_rows(folder.metrics) if row.eval_loss is not None}
    return found.get

"""What is simulated: a config at a number of GPUs, its plan, placement and costs. Plan half."""

from dataclasses import dataclass, replace

from orchestrator.config import RunConfig
from orchestrator.data.manifest import Manifest, Split, TokenizerFacts
from orchestrator.errors import ConfigError
from orchestrator.placement import planned_placement
from orchestrator.plan import plan_run
from orchestrator.simulate.costs import Costs, costs_of
from orchestrator.spec import Placement, RunPlan

GPUS_PER_NODE = 8
ROWS = 10_000_000
"""Of the data that is read where there is none: the order formula's domain."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    gpus: int
    nodes: int
    config: RunConfig
    """With as many workers as are simulated."""
    plan: RunPlan
    manifest: Manifest
    placement: Placement
    """Of the simulated ranks."""
    costs: Costs
    """Of all GPUs."""

    def with_steps(self, steps: int, save_every: int | None = None) -> "Setting":
        """The same for `steps` steps, with a checkpoint every `save_every`."""
        checkpoint = self.config.checkpoint
        if save_every is not None:
            checkpoint = replace(checkpoint, every_steps=save_every)
        config = replace(self.config, checkpoint=checkpoint, train=replace(self.config.train, steps=steps))
        return replace(self, config=config, plan=replace(self.plan, steps=steps, schedule_steps=steps))

    def with_restarts(self, max_restarts: int) -> "Setting":
        """The same with another budget."""
        return replace(self, config=replace(self.config, fault=replace(self.config.fault, max_restarts=max_restarts)))


def setting_of(
    config: RunConfig,
    *,
    gpus: int | None = None,
    ranks_per_node: int = 1,
    device: str = "cuda",
    step_s: float | None = None,
) -> Setting:
    """`config` on `gpus` (None: cluster.num_workers), where the batch does not divide with the next larger one that
    does.

    `ranks_per_node`: how many ranks stand for a node's GPUs, which die, hang and save together in a simulation.
    Raises ConfigError.
    """
    gpus = gpus or config.cluster.num_workers
    per_node = min(gpus, config.cluster.workers_per_node or GPUS_PER_NODE)
    if gpus % per_node or not 1 <= ranks_per_node <= per_node:
        raise ConfigError(f"{gpus} GPUs are not nodes of {per_node}; use a multiple, or set cluster.workers_per_node")
    nodes = gpus // per_node
    once = config.train.micro_batch_size * gpus
    batch = -(-config.train.global_batch_size // once) * once
    train = replace(config.train, global_batch_size=batch, eval_every_steps=0)
    full = replace(config, train=train, cluster=replace(config.cluster, num_workers=gpus, workers_per_node=per_node))
    manifest = _imagined(full)
    plan = plan_run(full, manifest, device=device)
    ranks = nodes * ranks_per_node
    cluster = replace(full.cluster, num_workers=ranks, workers_per_node=ranks_per_node)
    return Setting(
        gpus=gpus,
        nodes=nodes,
        config=replace(full, cluster=cluster),
        plan=replace(plan, batch=replace(plan.batch, world_size=ranks), peak_flops_per_worker=None),
        manifest=manifest,
        placement=planned_placement(cluster, device),
        costs=costs_of(plan, planned_placement(full.cluster, device), step_s=step_s),
    )


def _imagined(config: RunConfig) -> Manifest:
    """Data of `ROWS` rows: a simulation needs none."""
    seq_len = config.train.seq_len or config.model.max_seq_len
    split = Split(documents=1, tokens=ROWS * seq_len + 1, text_bytes=4 * ROWS * seq_len, shards=())
    vocab_size = config.model.vocab_size or config.data.vocab_size or 8192
    tokenizer = TokenizerFacts(file="", vocab_size=vocab_size, eos_token_id=0, xxh3_128="0" * 32)
    return Manifest(dtype="uint32", tokenizer=tokenizer, train=split, validation=split, source={})

"""`phalanx plan`: what a config means, before anything starts. Imports neither torch nor ray."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.text import Text

from launch.cli_help import parser
from launch.compose import compose
from launch.plan_text import (
    Section,
    checkpoint_bytes,
    checkpoint_shares,
    fit_section,
    plan_sections,
    total_flops,
    total_tokens,
)
from orchestrator.codec import encode
from orchestrator.config import Device, RunConfig
from orchestrator.control.opening import find_folder, plan_for
from orchestrator.control.snapshotmemory import fitting_snapshots, process_bytes, snapshot_memory
from orchestrator.data import files
from orchestrator.data.manifest import FILE_NAME, Manifest
from orchestrator.data.shards import read_manifest
from orchestrator.doctor.proberecord import recorded_probe
from orchestrator.errors import ConfigError
from orchestrator.fit import fits
from orchestrator.memory import activations_by_layer, fillable_bytes, held_bytes, logits_bytes
from orchestrator.observe.wording import batch_words
from orchestrator.placement import planned_placement
from orchestrator.plan import memory_limit_bytes, memory_refusal, plan_run, rank_load
from orchestrator.simulate.costs import checkpoint_time
from orchestrator.spec import Placement, RunPlan
from orchestrator.steptime import model_flops_utilisation

EXAMPLES = """  phalanx plan experiment=quickstart
  phalanx plan experiment=llama_8b_h100x64 cluster.num_workers=512
  phalanx plan --fit model=llama_8b cluster=h100x8 train=bf16 train.global_batch_size=64
  phalanx plan --price 2.5 experiment=gpt_1_3b_h100x8
  phalanx plan --json experiment=gpt_1_3b_h100x8 parallel=zero3
  phalanx doctor --probe      # once: from then on a CPU's step time is measured, not assumed

Needs neither data, nor a GPU, nor a cluster. Exits 2, with the numbers, when the plan can't work."""


def run(argv: list[str]) -> int:
    """Print a config's plan. Raises ConfigError when it can't work; one that lacks memory is shown first."""
    options, overrides = _parser().parse_known_args(argv)
    config = compose(overrides).config
    if options.fit:
        return _run_fit(config, as_json=options.json)
    manifest, notes = manifest_if_any(config)
    device = planned_device(config)
    if manifest is None:
        plan = plan_run(config, None, device=device, probe=recorded_probe())
    else:  # the run may have been started before: then its schedule is fixed, and the batch may be uneven
        plan = plan_for(config, manifest, find_folder(config, manifest), device)
    placement = planned_placement(config.cluster, device)
    refusal = memory_refusal(config, plan)
    snapshots = fitting_snapshots(config, plan, placement, config.cluster.memory_bytes_per_node)
    if refusal is None and not snapshots.is_enough:
        refusal = snapshots.note
    if options.json:
        print(json.dumps(_as_json(plan, placement, config, notes, refusal), indent=2))
    else:
        _print(plan_sections(plan, placement, config, price_per_hour=options.price), notes)
    if refusal is not None:
        raise ConfigError(refusal)
    return 0


def planned_device(config: RunConfig) -> str:
    """`auto` can't look at a node here: it is CUDA where the config names an accelerator, else the CPU."""
    if config.cluster.device is not Device.auto:
        return config.cluster.device.value
    return "cpu" if config.cluster.hardware is None else "cuda"


def _parser() -> argparse.ArgumentParser:
    parsing = parser(
        "plan",
        "What a config means: batch, placement, parameters, FLOPs, memory, DeepSpeed JSON.",
        EXAMPLES,
        "[--fit] [--price PRICE] [--json] [KEY=VALUE ...]",
    )
    parsing.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parsing.add_argument(
        "--fit", action="store_true", help="search the fastest stage, micro-batch and offload that fit"
    )
    parsing.add_argument("--price", type=float, help="of one GPU for an hour: what the run costs")
    return parsing


def _run_fit(config: RunConfig, *, as_json: bool) -> int:
    """The micro-batch is what is searched for: the config's own need not divide anything."""
    config = replace(config, train=replace(config.train, micro_batch_size=1))
    manifest, notes = manifest_if_any(config)
    probe = recorded_probe()
    plan = plan_run(config, manifest, device=planned_device(config), probe=probe)
    found = fits(config, plan, probe)
    if not as_json:
        _print([fit_section(found, plan)], notes)
        return 0
    ways = [
        {
            "overrides": fit.overrides(),
            "memory_bytes": fit.memory_bytes,
            "micro_steps": fit.micro_steps,
            "step_s": fit.time.total,
            "step_parts_s": encode(fit.time),
            "mfu": model_flops_utilisation(plan, fit.time.total),
        }
        for fit in found
    ]
    print(json.dumps(ways, indent=2))
    return 0


def manifest_if_any(config: RunConfig) -> tuple[Manifest | None, list[str]]:
    """The prepared data's manifest, if there is one: planning needs no data. DataError if it is damaged."""
    path = config.data.path
    if path is not None and files.file_bytes(files.join(path, FILE_NAME)) is not None:
        return read_manifest(path), []
    where = "data.path is not set" if path is None else f"data.path={path} has no {FILE_NAME} yet"
    if config.model.vocab_size is not None:
        return None, [f"{where}: the data is not checked"]
    return None, [f"{where}: the vocabulary is assumed, and the data is not checked"]


def _print(sections: Sequence[Section], notes: Sequence[str]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for section in sections:
        console.print(Text(section.title, style="bold cyan"))
        for index, line in enumerate(section.lines):
            console.print(Text(f"  {line}", style="bold" if index == section.marked else ""))
        console.print()
    for note in notes:
        console.print(Text(f"note: {note}", style="yellow"))


def _as_json(
    plan: RunPlan, placement: Placement, config: RunConfig, notes: list[str], refusal: str | None
) -> dict[str, Any]:
    time = plan.predicted and plan.predicted.time
    memory = snapshot_memory(config, plan, placement)
    limit = memory_limit_bytes(config, device=plan.device)
    checkpoint = checkpoint_time(checkpoint_bytes(plan, config), len(placement.bundles))
    shares = checkpoint_shares(plan, config, checkpoint)
    load = rank_load(config, plan.model, device=plan.device)
    activations, logits = activations_by_layer(load), logits_bytes(load)
    return {
        "plan": encode(plan),
        "placement": encode(placement),
        "batch": {
            "words": batch_words(plan.batch),
            "micro_steps": plan.batch.micro_steps,
            "tokens_per_step": plan.batch.tokens_per_step,
        },
        "total_tokens": total_tokens(plan),
        "tokens_per_parameter": total_tokens(plan) / plan.parameters,
        "total_flops": total_flops(plan),
        "step_time_s": None if time is None else encode(time),
        "step_time_source": plan.predicted and plan.predicted.source.value,
        "training_time_s": None if time is None else plan.steps * time.total,
        "memory_bytes": held_bytes(plan.memory_by_stage[plan.zero_stage], plan.device),
        "activations": {
            "by_layer": encode(activations),
            "logits": logits,
            "checkpointing": {
                word: activations.kept(is_checkpointed=is_checkpointed) + logits
                for word, is_checkpointed in (("off", False), ("on", True))
            },
        },
        "process_bytes": process_bytes(plan, memory),
        "snapshots": encode(memory),
        "checkpoint": {
            "bytes": checkpoint_bytes(plan, config),
            "assumed": encode(checkpoint),
            "written_share": shares and shares[0],
            "lost_share": shares and shares[1],
        },
        "memory_limit_bytes": limit,
        "fillable_memory_bytes": limit if limit is None else fillable_bytes(limit, plan.device),
        "notes": notes,
        "problems": [] if refusal is None else [refusal],
    }

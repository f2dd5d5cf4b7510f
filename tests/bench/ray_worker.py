"""The bare worker as the training loop of Ray Train v2's TorchTrainer, restarted by Ray whatever happens.

Started as `ray_worker.py SPECS.json FOLDER`; writes what `bare_worker` writes.
"""

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer

from orchestrator.codec import decode
from orchestrator.spec import WorkerSpec

ROOT = Path(__file__).resolve().parents[2]


def train_loop(config: dict[str, Any]) -> None:
    from tests.bench.bare_worker import prepare, train

    rank = get_context().get_world_rank()
    spec = decode(WorkerSpec, config["specs"][rank])
    prepare(spec)
    train(spec, Path(config["folder"]), restarts=0)


def main(specs: Path, folder: Path) -> None:
    of_ranks = json.loads(specs.read_text())
    ray.init(include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"specs": of_ranks, "folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=len(of_ranks), resources_per_worker={"CPU": 1}),
        run_config=RunConfig(storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=-1)),
    )
    trainer.fit()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

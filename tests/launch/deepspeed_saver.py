"""One rank of a small DeepSpeed training that saves with DeepSpeed's own save_checkpoint, and what it had in memory.

deepspeed_saver.py FOLDER STAGE PRECISION RANK WORLD_SIZE PORT
"""

import json
import os
import sys
from pathlib import Path

import numpy as np

from model.config import ModelConfig
from model.engine import Engine, EngineSettings, join_process_group
from model.optimizer import OptimizerSettings
from model.zero import ds_config
from orchestrator.codec import decode

MICRO_STEPS = 1
SEQ_LEN = 8


class Batch:
    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens
        self.weights = np.ones(len(tokens), np.float32)


def main(folder: Path, *, stage: int, precision: str, rank: int, world_size: int, port: int) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size)
    )
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), GLOO_SOCKET_IFNAME="lo")
    model = decode(ModelConfig, json.loads((folder / "model.json").read_text()))
    join_process_group(
        device="cpu", store_host="127.0.0.1", store_port=port, prefix="t", rank=rank, world_size=world_size,
        timeout_s=120,
    )  # fmt: skip
    engine = Engine(
        EngineSettings(
            model=model,
            optimizer=OptimizerSettings(
                name="adamw", lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, momentum=0.0
            ),
            ds_config=ds_config(
                micro_batch_size=2,
                micro_steps=MICRO_STEPS,
                world_size=world_size,
                zero_stage=stage,
                precision=precision,
                optimizer="adamw",
                grad_clip=1.0,
                device="cpu",
                parameters=100_000,
                largest_parameter=10_000,
                offload="none",
                nvme_path=None,
                bucket_elements=None,
                extra={},
            ),
            zero_stage=stage,
            device="cpu",
            seed=3,
            tokens_per_step=2 * world_size * SEQ_LEN,
            activation_checkpointing=False,
            eos_token_id=None,
        ),
        is_restored=False,
    )
    rng = np.random.default_rng(rank)
    for step in range(2):
        tokens = rng.integers(0, model.vocab_size, (2, SEQ_LEN + 1), dtype=np.int64)
        engine.train_step(step, [Batch(tokens)], 1e-2, lambda loss_sum: None)
    engine._engine.save_checkpoint(str(folder / "saved"))
    pieces = {}
    for part in engine.state_parts():
        for f in part.fragments:
            values = part.values.view(-1)[f.flat_start : f.flat_start + f.count].numpy()
            pieces[f"{part.kind}|{f.name}|{f.start}"] = values
    np.savez(folder / f"memory_{rank}.npz", **pieces)


if __name__ == "__main__":
    path, stage, precision, rank, world_size, port = sys.argv[1:]
    main(
        Path(path),
        stage=int(stage),
        precision=precision,
        rank=int(rank),
        world_size=int(world_size),
        port=int(port),
    )

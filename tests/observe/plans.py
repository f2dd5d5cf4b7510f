"""A small plan for what is printed about one."""

from model.config import Activation, ModelConfig, Norm, Positions
from orchestrator.config import Precision
from orchestrator.spec import BatchShape, RunPlan


def plan(*, world_size: int = 8, micro_batch_size: int = 4, steps: int = 5000) -> RunPlan:
    return RunPlan(
        run_id="demo",
        fingerprint="0" * 16,
        identity={},
        model=ModelConfig(
            name="tiny",
            vocab_size=512,
            hidden_size=64,
            num_layers=2,
            num_heads=2,
            ffn_hidden_size=256,
            max_seq_len=512,
            positions=Positions.rotary,
            norm=Norm.layernorm,
            activation=Activation.gelu,
            bias=False,
            tied_embeddings=True,
        ),
        batch=BatchShape(global_batch_size=96, micro_batch_size=micro_batch_size, world_size=world_size, seq_len=512),
        precision=Precision.bf16,
        zero_stage=2,
        device="cpu",
        steps=steps,
        schedule_steps=steps,
        parameters=1_200_000,
        flops_per_token=8_000_000,
        memory_by_stage={},
        peak_flops_per_worker=None,
        ds_config={},
    )

"""Memory of one rank, against published figures, hand-computed ones and what torch really keeps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.config import Activation, ModelConfig, Norm, Positions
from model.initial import initialise
from model.sizing import num_parameters
from model.transformer import Transformer, document_ids
from orchestrator.config import Offload, OptimConfig, OptimizerName, Precision
from orchestrator.memory import (
    HEADROOM,
    RankLoad,
    activation_bytes,
    activations_by_layer,
    block_activation_bytes,
    gigabytes,
    held_bytes,
    logits_bytes,
    memory_by_stage,
    memory_problem,
    num_moments,
    rank_memory,
    state_bytes,
)

GPT_SMALL = ModelConfig(
    name="small",
    vocab_size=1024,
    hidden_size=64,
    num_layers=3,
    num_heads=4,
    num_kv_heads=4,
    ffn_hidden_size=256,
    max_seq_len=128,
    positions=Positions.learned,
    norm=Norm.layernorm,
    activation=Activation.gelu,
    bias=True,
    tied_embeddings=True,
)
LLAMA_SMALL = replace(
    GPT_SMALL,
    num_kv_heads=2,
    positions=Positions.rotary,
    norm=Norm.rmsnorm,
    activation=Activation.swiglu,
    bias=False,
    tied_embeddings=False,
)
LOAD = RankLoad(
    model=GPT_SMALL,
    zero_stage=2,
    world_size=4,
    micro_batch_size=2,
    seq_len=128,
    precision=Precision.bf16,
    moments=2,
    offload=Offload.none,
    device="cuda",
    activation_checkpointing=False,
    isolate_documents=False,
)


@pytest.mark.parametrize(
    ("stage", "gb"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)], ids=["ddp", "Pos", "Pos+g", "Pos+g+p"]
)
def test_the_zero_paper_s_figure_1(stage, gb):
    """arXiv 1910.02054, figure 1: 7.5 B parameters, 64-way, Adam in mixed precision."""
    states = state_bytes(7_500_000_000, zero_stage=stage, world_size=64, precision=Precision.bf16)
    assert round((states.parameters + states.gradients + states.optimizer) / 1e9, 1) == gb


@pytest.mark.parametrize(
    ("stage", "parameters", "gradients", "optimizer"),
    [(0, 4000, 4000, 8000), (1, 4000, 4000, 3000), (2, 4000, 1000, 3000), (3, 1000, 1000, 2000)],
)
def test_fp32_by_hand(stage, parameters, gradients, optimizer):
    """1,000 parameters on 4 ranks: a separate fp32 partition at stages 1 and 2 only."""
    states = state_bytes(1000, zero_stage=stage, world_size=4, precision=Precision.fp32)
    assert (states.parameters, states.gradients, states.optimizer, states.host) == (
        parameters,
        gradients,
        optimizer,
        0,
    )


@pytest.mark.parametrize(
    ("stage", "offload", "parameters", "gradients", "host"),
    [
        # host: 12 bytes of states, 4 of gradient and 2 of staging for each of 250 elements
        (1, Offload.optimizer, 2000, 2000, 4500),
        (2, Offload.optimizer, 2000, 0, 4500),
        (3, Offload.optimizer, 500, 0, 4500),
        (3, Offload.params, 0, 0, 5000),
        (3, Offload.nvme, 0, 0, 5000),
        (2, Offload.params, 2000, 0, 4500),
    ],
)
def test_offload_moves_states_to_the_host(stage, offload, parameters, gradients, host):
    states = state_bytes(1000, zero_stage=stage, world_size=4, precision=Precision.bf16, offload=offload)
    assert (states.parameters, states.gradients, states.optimizer, states.host) == (
        parameters,
        gradients,
        0,
        host,
    )


def test_stage_0_offloads_nothing():
    plain = state_bytes(1000, zero_stage=0, world_size=4, precision=Precision.fp32)
    assert plain == state_bytes(1000, zero_stage=0, world_size=4, precision=Precision.fp32, offload=Offload.optimizer)


@pytest.mark.parametrize(
    ("name", "momentum", "moments"),
    [
        (OptimizerName.adamw, 0.9, 2),
        (OptimizerName.adam, 0.0, 2),
        (OptimizerName.sgd, 0.9, 1),
        (OptimizerName.sgd, 0.0, 0),
    ],
)
def test_moments_of_an_optimizer(name, momentum, moments):
    assert num_moments(OptimConfig(name=name, momentum=momentum)) == moments


def test_a_block_in_bf16_is_the_paper_s_34_sbh_less_the_dropout_masks():
    """arXiv 2205.05198, equation 1 without the attention matrices, plus one fp32 per head and token."""
    tokens, hidden, heads = 2 * 128, 64, 4
    assert block_activation_bytes(LOAD) == 32 * tokens * hidden + 4 * tokens * heads
    dropped = replace(LOAD, model=replace(GPT_SMALL, dropout=0.1))
    assert block_activation_bytes(dropped) == 34 * tokens * hidden + 4 * tokens * heads


def test_logits_by_hand():
    elements = 2 * 128 * 1024
    assert logits_bytes(LOAD) == elements * (2 + 2 + 8)
    large = replace(LOAD, micro_batch_size=2000)
    assert logits_bytes(large) == 1000 * elements * 4 + 2 * 4 * 2**24  # fp32 in chunks


def test_checkpointing_keeps_each_block_s_input_and_one_block():
    whole, kept = activation_bytes(LOAD), activation_bytes(replace(LOAD, activation_checkpointing=True))
    block, x = block_activation_bytes(LOAD), 2 * 128 * 64 * 2
    assert whole - kept == 2 * block - 3 * x


def saved_bytes(model: Transformer, tokens: torch.Tensor, documents: torch.Tensor | None) -> int:
    """Bytes of the distinct storages that autograd keeps after a forward pass, parameters aside."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    # The tensors are held as well: a freed one's address may be given to another.
    kept: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(tokens, documents)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("shape", [GPT_SMALL, LLAMA_SMALL, replace(GPT_SMALL, activation=Activation.relu)])
@pytest.mark.parametrize("variant", ["plain", "checkpointed", "isolated", "dropout"])
def test_activations_are_what_torch_keeps(shape, variant):
    """Within 3 %: token ids, the norms' statistics and rotary tables are not counted."""
    is_checkpointed = variant == "checkpointed"
    shape = replace(shape, dropout=0.1) if variant == "dropout" else shape
    load = replace(
        LOAD,
        model=shape,
        precision=Precision.fp32,
        device="cpu",
        isolate_documents=variant == "isolated",
        activation_checkpointing=is_checkpointed,
    )
    model = Transformer(shape, activation_checkpointing=is_checkpointed)
    initialise(model, shape, 1)
    tokens = torch.randint(shape.vocab_size, (load.micro_batch_size, load.seq_len))
    documents = document_ids(tokens, 0) if variant == "isolated" else None
    counted = activation_bytes(load)
    if is_checkpointed:  # the one block that is recomputed is not there yet after the forward pass
        counted -= block_activation_bytes(load)
    assert saved_bytes(model.train(), tokens, documents) == pytest.approx(counted, rel=0.03)


@pytest.mark.parametrize("shape", [GPT_SMALL, LLAMA_SMALL])
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_a_layer_s_activations_are_what_torch_keeps_for_one_more(shape, is_checkpointed):
    load = replace(
        LOAD, model=shape, precision=Precision.fp32, device="cpu", activation_checkpointing=is_checkpointed
    )
    found = activations_by_layer(load)
    tokens = torch.randint(shape.vocab_size, (load.micro_batch_size, load.seq_len))
    kept = []
    for num_layers in (2, 5):
        deep = replace(shape, num_layers=num_layers)
        model = Transformer(deep, activation_checkpointing=is_checkpointed)
        initialise(model, deep, 1)
        kept.append(saved_bytes(model.train(), tokens, None))
    each = found.block_input if is_checkpointed else found.block
    assert (kept[1] - kept[0]) / 3 == pytest.approx(each, rel=0.03)


def test_the_layers_and_the_policy_make_the_rank_s_activations():
    off, on = LOAD, replace(LOAD, activation_checkpointing=True)
    found = activations_by_layer(on)
    assert found == activations_by_layer(off)
    for load in (off, on):
        assert found.kept(is_checkpointed=load.activation_checkpointing) == rank_memory(load).activations
    assert found.kept(is_checkpointed=True) < found.kept(is_checkpointed=False)


def test_stages_only_ever_take_less():
    totals = [memory.device_total for memory in memory_by_stage(replace(LOAD, device="cpu")).values()]
    assert totals[0] > totals[1] > totals[2]


@settings(max_examples=50, deadline=None)
@given(
    world_size=st.integers(1, 64),
    stage=st.integers(0, 3),
    precision=st.sampled_from(list(Precision)),
    offload=st.sampled_from(list(Offload)),
)
def test_partitions_cover_the_model(world_size, stage, precision, offload):
    """No stage, world or offload loses a byte: all ranks together hold at least one copy of every state."""
    parameters = num_parameters(GPT_SMALL)
    states = state_bytes(parameters, zero_stage=stage, world_size=world_size, precision=precision, offload=offload)
    held = world_size * (states.parameters + states.optimizer + states.host)
    assert held >= parameters * 12  # an fp32 master and two moments


def test_what_fits_has_no_problem():
    load = replace(LOAD, device="cpu")
    needed = rank_memory(load).device_total
    assert memory_problem(load, needed, 8) is None
    assert memory_problem(load, needed - 1, 8) is not None


def test_on_a_gpu_fragmentation_is_assumed():
    """99 % of a device's memory is no fit, neither for what is asked for nor for what is proposed instead."""
    needed = rank_memory(LOAD).device_total
    assert memory_problem(LOAD, int(needed / 0.92) + 2, 8) is None
    limit = int(needed / 0.99)
    fillable = int(limit * HEADROOM)
    problem = memory_problem(LOAD, limit, 8)
    assert problem is not None
    assert (
        f"needs {gigabytes(needed)} per rank, {gigabytes(fillable)} of its {gigabytes(limit)} may be filled "
        f"({gigabytes(limit - fillable)} assumed for fragmentation and the CUDA context); " in problem
    )
    # Stage 1 needs less than either limit, but more than may be filled of the second.
    load = replace(LOAD, zero_stage=0, world_size=64)
    proposed = rank_memory(replace(load, zero_stage=1)).device_total
    enough = memory_problem(load, int(proposed / 0.92) + 2, 128)
    tight = memory_problem(load, int(proposed / 0.93), 128)
    assert enough is not None and "; parallel.zero_stage=1 needs" in enough
    assert tight is not None and "; parallel.zero_stage=1 needs" not in tight


def test_what_does_not_fit_is_refused_with_the_nearest_stage_that_does():
    load = replace(LOAD, zero_stage=0, world_size=64, device="cpu")
    stages = memory_by_stage(load)
    limit = stages[1].device_total
    assert memory_problem(load, limit, 128) == (
        "parallel.zero_stage=0 with train.micro_batch_size=2 needs "
        f"{gigabytes(stages[0].device_total)} per rank, a rank has {gigabytes(limit)}; "
        f"parallel.zero_stage=1 needs {gigabytes(limit)}"
    )


def test_a_smaller_micro_batch_is_proposed_only_where_it_divides():
    load = replace(LOAD, zero_stage=3, micro_batch_size=9, device="cpu")
    smaller = rank_memory(replace(load, micro_batch_size=8)).device_total
    problem = memory_problem(load, smaller, 36)
    assert problem is not None
    assert "; train.micro_batch_size=3 needs" in problem  # 36 samples on 4 ranks: 9 each


@pytest.mark.parametrize("limit", [10**6, 10**5, 10**3])
def test_a_proposal_really_fits_and_hopeless_cases_say_so(limit):
    load = replace(LOAD, model=replace(LLAMA_SMALL, num_layers=12), zero_stage=1, micro_batch_size=8)
    problem = memory_problem(load, limit, 32)
    assert problem is not None
    assert problem.endswith(
        "; no ZeRO stage, micro-batch or offload fits on 4 workers: use more workers (cluster.num_workers), "
        "a smaller model or a shorter train.seq_len"
    )


def test_offload_is_the_last_resort():
    load = replace(LOAD, model=replace(GPT_SMALL, vocab_size=64), zero_stage=3, micro_batch_size=1, seq_len=1)
    load = replace(load, activation_checkpointing=True)
    limit = rank_memory(load).device_total - 1
    problem = memory_problem(load, limit, 4)
    assert problem is not None
    assert "; parallel.offload=optimizer needs " in problem


def test_on_a_cpu_offloaded_bytes_count_too():
    memory = rank_memory(replace(LOAD, offload=Offload.optimizer))
    assert memory.host > 0
    assert held_bytes(memory, "cuda") == memory.device_total
    assert held_bytes(memory, "cpu") == memory.device_total + memory.host

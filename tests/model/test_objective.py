import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import random_tokens, small_config, small_model

from model import objective
from model.objective import evaluate_rows, token_losses_sum
from model.transformer import document_ids


def reference(logits, targets, weights):
    losses = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten(), reduction="none")
    return (losses.view(targets.shape) * weights[:, None]).sum()


@pytest.mark.parametrize("chunk_elements", [1, 200, 1 << 24])
def test_value_and_gradient_equal_torchs_in_any_chunks(monkeypatch, chunk_elements):
    monkeypatch.setattr(objective, "CHUNK_ELEMENTS", chunk_elements)
    logits = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0)).mul_(3).requires_grad_()
    targets, weights = random_tokens(3, 5), torch.tensor([1.0, 0.0, 0.5])
    loss = token_losses_sum(logits, targets, weights)
    (grad,) = torch.autograd.grad(loss * 0.125, logits)
    wanted = reference(logits, targets, weights)
    (wanted_grad,) = torch.autograd.grad(wanted * 0.125, logits)
    assert loss.dtype is torch.float32 and loss.shape == ()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(grad, wanted_grad, rtol=1e-5, atol=1e-7)
    assert not grad[1].any()


def test_bf16_logits_lose_nothing_in_the_loss():
    logits = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    targets, weights = random_tokens(2, 8), torch.ones(2)
    loss = token_losses_sum(logits, targets, weights)
    loss.backward()
    assert loss.item() == pytest.approx(reference(logits, targets, weights).item(), rel=1e-6)
    assert logits.grad.dtype is torch.bfloat16


def test_huge_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    loss = token_losses_sum(logits, torch.tensor([[1]]), torch.ones(1))
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert logits.grad.flatten().tolist() == [1.0, -1.0, 0.0]


def test_evaluation_sums_over_batches_and_puts_the_mode_back():
    model = small_model(small_config(dropout=0.5)).train()
    rows = random_tokens(4, 9).numpy().astype(np.int64)
    loss_sum, tokens = evaluate_rows(model, iter([rows[:3], rows[3:]]))
    model.eval()
    inputs = torch.from_numpy(rows)
    wanted = reference(model(inputs[:, :-1]), inputs[:, 1:], torch.ones(4)).item()
    assert tokens == 32
    assert loss_sum == pytest.approx(wanted, rel=1e-5)
    model.train()
    evaluate_rows(model, [rows])
    assert model.training


def test_evaluation_isolates_documents_when_asked():
    model = small_model(small_config())
    rows = random_tokens(2, 9)
    rows[:, 4] = 0
    isolated, _ = evaluate_rows(model, [rows], eos_token_id=0)
    joined, _ = evaluate_rows(model, [rows])
    inputs = rows[:, :-1]
    logits = model(inputs, document_ids(inputs, 0))
    assert isolated == pytest.approx(reference(logits, rows[:, 1:], torch.ones(2)).item(), rel=1e-5)
    assert abs(isolated - joined) > 1e-3

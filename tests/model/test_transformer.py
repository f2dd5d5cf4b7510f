import itertools

import pytest
import torch
import torch.nn.functional as F
from small_models import LLAMA, random_tokens, small_config, small_model

from model.config import Activation, Norm, Positions
from model.objective import token_losses_sum
from model.transformer import KeyValueCache, Transformer, document_ids

OPTIONS = list(itertools.product(Positions, Norm, Activation, (True, False)))


def naive_logits(model, config, tokens, visible):
    """The same network written out in fp64, one head at a time, from the papers' formulas."""
    weights = {name: p.double() for name, p in model.named_parameters()}
    size = config.hidden_size // config.num_heads

    def linear(name, x):
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)

    def norm(name, x):
        if config.norm is Norm.layernorm:
            x = x - x.mean(-1, keepdim=True)
        scaled = x / (x.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        return scaled * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0.0)

    def rotate(x):
        if config.positions is Positions.learned:
            return x
        turned = torch.empty_like(x)
        for position, k in itertools.product(range(len(x)), range(size // 2)):
            angle = torch.tensor(position * config.rope_theta ** (-2 * k / size)).double()
            a, b = x[position, k], x[position, k + size // 2]
            turned[position, k] = a * angle.cos() - b * angle.sin()
            turned[position, k + size // 2] = a * angle.sin() + b * angle.cos()
        return turned

    def attention(name, x):
        query, key, value = (linear(f"{name}.{kind}", x) for kind in ("query", "key", "value"))
        heads = []
        for head in range(config.num_heads):
            group = head // (config.num_heads // config.num_kv_heads)
            q = rotate(query[:, head * size : (head + 1) * size])
            k = rotate(key[:, group * size : (group + 1) * size])
            scores = (q @ k.T / size**0.5).masked_fill(~visible, -torch.inf)
            heads.append(scores.softmax(-1) @ value[:, group * size : (group + 1) * size])
        return linear(f"{name}.output", torch.cat(heads, -1))

    def feed_forward(name, x):
        up = linear(f"{name}.up", x)
        if config.activation is Activation.swiglu:
            gate = linear(f"{name}.gate", x)
            up = gate * gate.sigmoid() * up
        elif config.activation is Activation.gelu:
            up = up * 0.5 * (1 + torch.erf(up / 2**0.5))
        else:
            up = up.clamp(min=0)
        return linear(f"{name}.down", up)

    x = weights["embedding.weight"][tokens]
    if config.positions is Positions.learned:
        x = x + weights["positions.weight"][: len(tokens)]
    for layer in range(config.num_layers):
        x = x + attention(f"blocks.{layer}.attention", norm(f"blocks.{layer}.attention_norm", x))
        x = x + feed_forward(f"blocks.{layer}.feed_forward", norm(f"blocks.{layer}.feed_forward_norm", x))
    head = weights["embedding.weight" if config.tied_embeddings else "head.weight"]
    return norm("norm", x) @ head.T


@pytest.mark.parametrize(("positions", "norm", "activation", "bias"), OPTIONS)
def test_equals_the_formulas(positions, norm, activation, bias):
    config = small_config(
        positions=positions,
        norm=norm,
        activation=activation,
        bias=bias,
        num_kv_heads=2 if bias else 4,
        tied_embeddings=bias,
    )
    model = small_model(config)
    tokens = random_tokens(1, 7)
    with torch.no_grad():
        logits = model(tokens)[0]
        visible = torch.ones(7, 7, dtype=torch.bool).tril()
        torch.testing.assert_close(
            logits.double(), naive_logits(model, config, tokens[0], visible), rtol=1e-4, atol=1e-4
        )


def test_document_ids_give_the_eos_to_the_document_it_ends():
    tokens = torch.tensor([[5, 0, 7, 7, 0, 0, 3], [0, 1, 2, 3, 4, 5, 6]])
    assert document_ids(tokens, 0).tolist() == [[0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1]]


@pytest.mark.parametrize("options", [{}, {"num_kv_heads": 1}, LLAMA], ids=["gpt", "grouped", "llama"])
def test_documents_of_a_row_do_not_see_each_other(options):
    config = small_config(**options)
    model = small_model(config)
    tokens = random_tokens(2, 12)
    tokens[tokens == 0] = 1
    tokens[0, 4], tokens[1, 7] = 0, 0
    with torch.no_grad():
        logits = model(tokens, document_ids(tokens, 0))
        for row, end in ((0, 5), (1, 8)):
            visible = torch.ones(12, 12, dtype=torch.bool).tril()
            visible[end:, :end] = False
            wanted = naive_logits(model, config, tokens[row], visible)
            torch.testing.assert_close(logits[row].double(), wanted, rtol=1e-4, atol=1e-4)
        changed = tokens.clone()
        changed[0, :4] = (changed[0, :4] + 1) % 64
        again = model(changed, document_ids(tokens, 0))
    assert torch.equal(again[0, 5:], logits[0, 5:])
    assert not torch.equal(again[0, :5], logits[0, :5])


@pytest.mark.parametrize("options", [{}, LLAMA], ids=["gpt", "llama"])
def test_cached_and_uncached_logits_agree_however_the_row_is_cut(options):
    model = small_model(small_config(**options))
    tokens = random_tokens(2, 16)
    with torch.no_grad():
        whole = model(tokens)
        for cuts in ([16], [1] * 16, [5, 1, 7, 3], [15, 1]):
            cache, parts = KeyValueCache(), []
            for part in tokens.split(cuts, dim=1):
                parts.append(model(part, cache=cache))
            torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
            assert cache.length == 16


def gradients(model, tokens, documents=None):
    torch.manual_seed(3)
    model.zero_grad()
    token_losses_sum(model(tokens[:, :-1], documents), tokens[:, 1:], torch.ones(len(tokens))).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("options", [{}, LLAMA], ids=["gpt", "llama"])
def test_activation_checkpointing_changes_no_gradient_and_keeps_less(options):
    config = small_config(**options, dropout=0.2)
    plain, sparing = small_model(config), Transformer(config, activation_checkpointing=True)
    sparing.load_state_dict(plain.state_dict())
    plain.train(), sparing.train()
    tokens = random_tokens(3, 17)
    saved_bytes = []
    found = []
    for model in (plain, sparing):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.nbytes), t)[1], lambda t: t
        ):
            found.append(gradients(model, tokens))
        saved_bytes.append(sum(sizes))
    for name, gradient in found[0].items():
        assert torch.equal(found[1][name], gradient), name
        assert gradient.any(), name
    assert saved_bytes[1] < saved_bytes[0]


def test_dropout_acts_in_training_only():
    model = small_model(small_config(dropout=0.3))
    tokens = random_tokens(1, 8)
    assert torch.equal(model(tokens), model(tokens))
    model.train()
    assert not torch.equal(model(tokens), model(tokens))
    torch.manual_seed(5)
    first = model(tokens)
    torch.manual_seed(5)
    assert torch.equal(model(tokens), first)


@pytest.mark.parametrize("options", [{}, LLAMA], ids=["gpt", "llama"])
def test_bf16_stays_bf16_and_close(options):
    model = small_model(small_config(**options, init_std=0.05))
    tokens = random_tokens(2, 16)
    with torch.no_grad():
        wanted = model(tokens)
        logits = model.bfloat16()(tokens)
    assert logits.dtype is torch.bfloat16
    assert F.cosine_similarity(logits.float().flatten(), wanted.flatten(), dim=0) > 0.999


def test_holds_no_buffers_so_a_cast_of_the_model_moves_no_angle():
    for options in ({}, LLAMA):
        assert not list(Transformer(small_config(**options)).buffers())


def test_rows_beyond_the_window_are_refused():
    model = small_model(small_config())
    with pytest.raises(ValueError, match=r"a row of 17 tokens is longer than model.max_seq_len=16"):
        model(random_tokens(1, 17))
    cache = KeyValueCache()
    model(random_tokens(1, 10), cache=cache)
    with pytest.raises(ValueError, match="a row of 17 tokens"):
        model(random_tokens(1, 7), cache=cache)
    with pytest.raises(ValueError, match="can't be combined"):
        model(random_tokens(1, 2), torch.zeros(1, 2), KeyValueCache())


def test_an_unresolved_config_is_refused():
    with pytest.raises(ValueError, match="must be resolved"):
        Transformer(small_config(vocab_size=None))

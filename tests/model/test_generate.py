import pytest
import torch
from small_models import LLAMA, random_tokens, small_config, small_model

from model.generate import Sampling, generate_tokens, next_token

GREEDY = Sampling(temperature=0)


def generate(model, prompt, **changes):
    settings = {"max_tokens": 8, "sampling": Sampling(), "seed": 1} | changes
    return list(generate_tokens(model, prompt, **settings))


def greedy_without_cache(model, context, max_tokens, window):
    """The plain definition: the whole context through the network for every token."""
    made = []
    for _ in range(max_tokens):
        token = int(model(torch.tensor([context]))[0, -1].argmax())
        made.append(token)
        context = [*context, token]
        if len(context) > window:
            context = context[-(window // 2) :]
    return made


@pytest.mark.parametrize("options", [{}, LLAMA], ids=["gpt", "llama"])
def test_cache_and_window_give_what_whole_contexts_give(options):
    model = small_model(small_config(**options))
    prompt = random_tokens(5).tolist()
    made = generate(model, prompt, sampling=GREEDY, max_tokens=40)
    assert made == greedy_without_cache(model, prompt, 40, window=16)
    assert len(made) == 40


def test_same_seed_same_tokens_other_seed_others():
    model = small_model(small_config())
    first = generate(model, [3], seed=5, max_tokens=30)
    torch.rand(10)
    assert generate(model, [3], seed=5, max_tokens=30) == first
    assert generate(model, [3], seed=6, max_tokens=30) != first


def test_a_prompt_that_fills_the_window_and_a_longer_one():
    model = small_model(small_config())
    prompt = random_tokens(20).tolist()
    assert generate(model, prompt, sampling=GREEDY) == generate(model, prompt[-16:], sampling=GREEDY)
    assert len(generate(model, prompt, sampling=GREEDY)) == 8
    with pytest.raises(ValueError, match="at least one token"):
        generate(model, [])


def test_ends_before_the_eos():
    model = small_model(small_config())
    endless = generate(model, [3], seed=2, max_tokens=30)
    eos = endless[7]
    assert generate(model, [3], seed=2, max_tokens=30, eos_token_id=eos) == endless[: endless.index(eos)]


def test_padding_rows_of_the_vocabulary_never_appear():
    model = small_model(small_config())
    everything = generate(model, [3], max_tokens=200)
    real = generate(model, [3], max_tokens=200, vocab_size=40)
    assert max(everything) >= 40 > max(real)


def frequencies(sampling, logits, draws=4000):
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(len(logits))
    for _ in range(draws):
        counts[next_token(logits, sampling, generator)] += 1
    return counts / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(temperature=0), [0, 1, 0, 0]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=1), [0, 1, 0, 0]),
        (Sampling(top_k=100), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.75), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(top_p=0.39), [0, 1, 0, 0]),
        (Sampling(top_p=0.0), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.7), [0, 4 / 7, 0, 3 / 7]),
    ],
)
def test_distribution(sampling, expected):
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log() + 3
    found = frequencies(sampling, logits)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=0, atol=0.03)
    assert not found[torch.tensor(expected) == 0].any()

import json

import pytest
import torch
from safetensors import safe_open
from small_models import LLAMA, random_tokens, small_config, small_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model.config import Activation, Norm, Positions
from model.export import ExportTokenizer, architecture, export_hugging_face

GPT_CASES = {
    "gelu_tied": {},
    "relu_untied": {"activation": Activation.relu, "tied_embeddings": False},
    "grouped": {"num_kv_heads": 2},
    "multi_query_no_bias": {"num_kv_heads": 1, "bias": False, "norm_eps": 1e-3},
}
LLAMA_CASES = {
    "grouped_untied": LLAMA,
    "tied": LLAMA | {"tied_embeddings": True, "num_kv_heads": 4, "rope_theta": 500.0, "norm_eps": 1e-3},
    "bias": LLAMA | {"bias": True},
}


def export(config, folder, **changes):
    model = small_model(config)
    flat = {name: p.detach().numpy().reshape(-1) for name, p in model.named_parameters()}
    settings = {"tokenizer": None, "origin": "a test"} | changes
    return model, export_hugging_face(config, flat.__getitem__, folder, **settings)


@pytest.mark.parametrize(
    ("class_name", "options"),
    [pytest.param("GPT2LMHeadModel", options, id=f"gpt_{name}") for name, options in GPT_CASES.items()]
    + [pytest.param("LlamaForCausalLM", options, id=f"llama_{name}") for name, options in LLAMA_CASES.items()],
)
def test_transformers_own_class_gives_equal_logits(tmp_path, class_name, options):
    from transformers import AutoModelForCausalLM

    config = small_config(**options)
    model, _ = export(config, tmp_path / "hf")
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", output_loading_info=True)
    assert type(theirs).__name__ == class_name
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    tokens = random_tokens(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(tokens).logits, model(tokens), rtol=1e-5, atol=2e-5)


def test_a_large_model_is_split_over_files_with_an_index(tmp_path):
    from transformers import LlamaForCausalLM

    config = small_config(**LLAMA)
    model, files = export(config, tmp_path / "hf", max_shard_bytes=20_000)
    shards = [file for file in files if file.endswith(".safetensors")]
    assert len(shards) > 2 and shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in model.parameters())
    for shard in shards:
        with safe_open(tmp_path / "hf" / shard, "pt") as file:
            assert sum(file.get_tensor(name).nbytes for name in file.keys()) <= 20_000  # noqa: SIM118
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    tokens = random_tokens(1, 8)
    torch.testing.assert_close(theirs.eval()(tokens).logits, model(tokens), rtol=1e-5, atol=2e-5)


def trained_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["def f(x): return x  # żółw\n" * 20], trainer)
    return tokenizer


@pytest.mark.parametrize("options", [{}, LLAMA], ids=["gpt", "llama"])
def test_auto_tokenizer_loads_and_splits_text_alike(tmp_path, options):
    from transformers import AutoTokenizer

    tokenizer = trained_tokenizer()
    eos = tokenizer.token_to_id("<|endoftext|>")
    config = small_config(**options, vocab_size=320)
    _, files = export(config, tmp_path / "hf", tokenizer=ExportTokenizer(tokenizer.to_str(), eos))
    assert files == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    for text in ("def g(y):\n    return  y", " żółw 日本", "", "a<|endoftext|>b"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
    assert (theirs.eos_token, theirs.eos_token_id) == ("<|endoftext|>", eos)
    assert theirs.model_max_length == 16
    assert json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"] == eos


def test_generates_in_transformers_what_we_generate(tmp_path):
    from transformers import AutoModelForCausalLM

    from model.generate import Sampling, generate_tokens

    config = small_config(**LLAMA)
    model, _ = export(config, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    found = theirs.generate(torch.tensor([[3, 9]]), max_new_tokens=10, do_sample=False, pad_token_id=0)
    ours = generate_tokens(model, [3, 9], max_tokens=10, sampling=Sampling(temperature=0), seed=0)
    assert found[0, 2:].tolist() == list(ours)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"positions": Positions.rotary},
            "model.positions=rotary can't be exported to GPT2LMHeadModel, which needs learned",
        ),
        (
            {"activation": Activation.swiglu},
            "model.activation=swiglu can't be exported to GPT2LMHeadModel, which needs gelu or relu",
        ),
        (
            LLAMA | {"activation": Activation.relu},
            "model.activation=relu can't be exported to LlamaForCausalLM, which needs swiglu",
        ),
        (
            LLAMA | {"norm": Norm.layernorm},
            "model.norm=layernorm can't be exported to LlamaForCausalLM, which needs rmsnorm",
        ),
    ],
)
def test_what_no_class_computes_is_refused_by_name(tmp_path, options, sentence):
    config = small_config(**options)
    with pytest.raises(ValueError) as error:
        architecture(config)
    assert str(error.value) == sentence
    with pytest.raises(ValueError):
        export(config, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_alone_and_a_failure_leaves_nothing(tmp_path):
    full = tmp_path / "full"
    full.mkdir()
    (full / "keep").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        export(small_config(), full)
    assert [file.name for file in full.iterdir()] == ["keep"]

    def broken(name):
        raise OSError(f"{name} can't be read")

    with pytest.raises(OSError, match="can't be read"):
        export_hugging_face(small_config(), broken, tmp_path / "new", tokenizer=None, origin="a test")
    assert [file.name for file in tmp_path.iterdir()] == ["full"]
    (tmp_path / "empty").mkdir()
    assert "config.json" in export(small_config(), tmp_path / "empty")[1]

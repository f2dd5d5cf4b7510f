import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from small_models import LLAMA, random_tokens, small_config, small_model

from model.config import Activation
from model.export import export_hugging_face
from model.pretrained import HuggingFaceWeights, class_of, config_from_hugging_face, our_tensors
from model.weights import load_transformer

SHAPES = {
    "llama": LLAMA,
    "llama_bias_tied": LLAMA | {"bias": True, "tied_embeddings": True},
    "gpt": {},
    "gpt_untied_relu": {"tied_embeddings": False, "activation": Activation.relu},
    "gpt_no_bias": {"bias": False},
    "gpt_grouped": {"num_kv_heads": 2},
}


def exported(folder, config):
    model = small_model(config)
    masters = {name: p.detach().numpy().reshape(-1) for name, p in model.named_parameters()}
    export_hugging_face(config, masters.__getitem__, folder, tokenizer=None, origin="a test", max_shard_bytes=9000)
    return model, masters


def read_back(folder, config):
    weights = HuggingFaceWeights(folder)
    class_name = json.loads((folder / "config.json").read_text())["architectures"][0]
    assert class_of(weights.names) == class_name
    return {name: read() for name, read in our_tensors(config, class_name, weights.names, weights.read).items()}


@pytest.mark.parametrize("options", SHAPES.values(), ids=SHAPES)
def test_what_was_exported_comes_back_bit_for_bit(tmp_path, options):
    config = small_config(**options)
    _, masters = exported(tmp_path / "hf", config)
    found = read_back(tmp_path / "hf", config)
    assert found.keys() == masters.keys()
    for name, values in masters.items():
        assert np.array_equal(found[name], values), name


@pytest.mark.parametrize("options", [LLAMA, {}], ids=["llama", "gpt"])
def test_the_config_comes_back(tmp_path, options):
    config = small_config(**options)
    exported(tmp_path / "hf", config)
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    found, notes = config_from_hugging_face(raw, "small")
    assert found == replace(config, num_kv_heads=found.num_kv_heads)
    assert found.num_kv_heads == config.num_kv_heads
    assert notes == []


def test_transformers_own_gpt2_gives_equal_logits(tmp_path):
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=64,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=16,
            activation_function="gelu",
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            resid_pdrop=0.0,
        )
    ).eval()
    theirs.save_pretrained(tmp_path / "hf")
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    config, _ = config_from_hugging_face(raw, "gpt2")
    model = load_transformer(config, read_back(tmp_path / "hf", config).__getitem__)
    tokens = random_tokens(2, 16)
    assert torch.allclose(model(tokens), theirs(tokens).logits, atol=1e-5)


def test_transformers_own_llama_in_bf16_gives_equal_logits(tmp_path):
    settings = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=16, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(settings).to(torch.bfloat16).eval()
    theirs.save_pretrained(tmp_path / "hf")
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    config, _ = config_from_hugging_face(raw, "llama")
    model = load_transformer(config, read_back(tmp_path / "hf", config).__getitem__)
    tokens = random_tokens(2, 16)
    assert torch.allclose(model(tokens), theirs.float()(tokens).logits, atol=1e-5)


def test_a_gpt2_saved_without_its_head_is_read(tmp_path):
    config = small_config()
    _, masters = exported(tmp_path / "hf", config)
    tensors = {}
    for file in (tmp_path / "hf").glob("*.safetensors"):
        tensors |= {name.removeprefix("transformer."): x for name, x in load_file(file).items()}
        file.unlink()
    (tmp_path / "hf" / "model.safetensors.index.json").unlink()
    save_file(tensors | {"h.0.attn.bias": torch.ones(2)}, tmp_path / "hf" / "model.safetensors")
    found = read_back(tmp_path / "hf", config)
    assert np.array_equal(found["blocks.1.attention.value.weight"], masters["blocks.1.attention.value.weight"])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"architectures": ["BertModel"]}, r"architectures=\['BertModel'\] can't be imported"),
        ({"hidden_act": "gelu"}, "hidden_act=gelu can't be imported, silu is needed"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "rope_type=llama3 can't be imported"),
        ({"head_dim": 16}, "head_dim=16 can't be imported, 8 is needed"),
        ({"mlp_bias": True}, "mlp_bias=True"),
    ],
)
def test_what_we_do_not_compute_is_refused(tmp_path, change, sentence):
    exported(tmp_path / "hf", small_config(**LLAMA))
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    with pytest.raises(ValueError, match=sentence):
        config_from_hugging_face(raw | change, "small")


def test_gpt2s_own_activation_is_named(tmp_path):
    exported(tmp_path / "hf", small_config())
    raw = json.loads((tmp_path / "hf" / "config.json").read_text())
    config, notes = config_from_hugging_face(raw | {"activation_function": "gelu_new"}, "small")
    assert config.activation is Activation.gelu
    assert "gelu_new becomes gelu" in notes[0]


def test_tensors_that_would_be_lost_or_are_missing_are_named(tmp_path):
    config = small_config()
    exported(tmp_path / "hf", config)
    with pytest.raises(ValueError, match=r"transformer\.ln_f\.bias is not part of the model"):
        read_back(tmp_path / "hf", replace(config, bias=False))
    with pytest.raises(ValueError, match=r"transformer\.h\.2\..* is missing"):
        read_back(tmp_path / "hf", replace(config, num_layers=3))
    with pytest.raises(ValueError, match=r"transformer\.h\.1\..* is not part of the model"):
        read_back(tmp_path / "hf", replace(config, num_layers=1))
    with pytest.raises(ValueError, match=r"use model\.num_kv_heads=4"):
        read_back(tmp_path / "hf", replace(config, num_kv_heads=2))


def test_pickles_are_never_read(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match="only safetensors are read"):
        HuggingFaceWeights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../../outside.safetensors"}}')
    with pytest.raises(ValueError, match="is missing"):
        HuggingFaceWeights(tmp_path)

"""To Hugging Face: a folder that `transformers`, vLLM and lm-eval load as it is.

A Llama-shaped model becomes LlamaForCausalLM, a GPT-shaped one GPT2LMHeadModel; what neither class can
compute is refused. Weights are fp32 safetensors; no pickle, and `transformers` is not needed.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from model.config import Activation, ModelConfig, Norm, Positions
from model.sizing import num_parameters, parameter_shapes
from model.weights import Fetch

MAX_SHARD_BYTES = 5_000_000_000
"""Larger models are split over several files, as the Hub does."""

_NEEDS: dict[str, dict[str, tuple[str, ...]]] = {
    "LlamaForCausalLM": {
        "positions": (Positions.rotary,),
        "norm": (Norm.rmsnorm,),
        "activation": (Activation.swiglu,),
    },
    "GPT2LMHeadModel": {
        "positions": (Positions.learned,),
        "norm": (Norm.layernorm,),
        "activation": (Activation.gelu, Activation.relu),
    },
}


@dataclass(frozen=True, slots=True)
class ExportTokenizer:
    """What goes beside the weights."""

    json_text: str
    """The tokenizer.json."""
    eos_token_id: int


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the exported model: its shape, and how to build it from ours."""

    shape: tuple[int, ...]
    build: Callable[[Callable[[str], np.ndarray]], np.ndarray]


def architecture(config: ModelConfig) -> str:
    """The `transformers` class that computes the same function.

    Raises ValueError, one line for each option in the way of the class that comes nearest.
    """
    problems_by_class = {
        name: [
            f"model.{option}={getattr(config, option)} can't be exported to {name}, which needs {' or '.join(values)}"
            for option, values in needs.items()
            if getattr(config, option) not in values
        ]
        for name, needs in _NEEDS.items()
    }
    nearest = min(problems_by_class, key=lambda name: len(problems_by_class[name]))
    if problems_by_class[nearest]:
        raise ValueError("\n".join(problems_by_class[nearest]))
    return nearest


def export_hugging_face(
    config: ModelConfig,
    fetch: Fetch,
    folder: Path,
    *,
    tokenizer: ExportTokenizer | None,
    origin: str,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[str]:
    """Write the model into `folder`, which must not exist or be empty; returns the names of its files.

    `origin` says in the model card where the weights come from. The folder appears whole or not at all.
    Raises ValueError for a model that no class can compute, FileExistsError for a folder with files in it.
    """
    class_name = architecture(config)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not an empty folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        build = _llama_tensors if class_name == "LlamaForCausalLM" else _gpt2_tensors
        _write_weights(build(config), config, fetch, partial, max_shard_bytes)
        eos_token_id = tokenizer.eos_token_id if tokenizer else None
        _write_json(partial / "config.json", _hf_config(class_name, config, eos_token_id))
        _write_json(partial / "generation_config.json", {"eos_token_id": eos_token_id})
        if tokenizer is not None:
            _write_tokenizer(tokenizer, config, partial)
        (partial / "README.md").write_text(_card(class_name, config, origin), encoding="utf-8")
        partial.replace(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sorted(file.name for file in folder.iterdir())


def _hf_config(class_name: str, config: ModelConfig, eos_token_id: int | None) -> dict[str, Any]:
    shared = {
        "architectures": [class_name],
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": None,
        "eos_token_id": eos_token_id,
        "dtype": "float32",
    }
    if class_name == "LlamaForCausalLM":
        rope = {"rope_type": "default", "rope_theta": config.rope_theta}
        return shared | {
            "model_type": "llama",
            "hidden_size": config.hidden_size,
            "intermediate_size": config.ffn_hidden_size,
            "num_hidden_layers": config.num_layers,
            "num_attention_heads": config.num_heads,
            "num_key_value_heads": config.num_kv_heads,
            "head_dim": config.hidden_size // config.num_heads,
            "max_position_embeddings": config.max_seq_len,
            "hidden_act": "silu",
            "rms_norm_eps": config.norm_eps,
            # The first for transformers 5, the second for 4 and for vLLM.
            "rope_parameters": rope,
            "rope_theta": config.rope_theta,
            "attention_bias": config.bias,
            "mlp_bias": config.bias,
            "attention_dropout": config.dropout,
        }
    return shared | {
        "model_type": "gpt2",
        "n_embd": config.hidden_size,
        "n_inner": config.ffn_hidden_size,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_positions": config.max_seq_len,
        "activation_function": config.activation.value,
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
    }


def _llama_tensors(config: ModelConfig) -> dict[str, _Tensor]:
    """The same matrices under Llama's names."""
    shapes = parameter_shapes(config)
    return {theirs: _copy(ours, shapes[ours]) for ours, theirs in llama_names(config).items()}


def llama_names(config: ModelConfig) -> dict[str, str]:
    """Our logical tensor -> its name in LlamaForCausalLM."""
    renames = {
        "attention_norm": "input_layernorm",
        "attention.query": "self_attn.q_proj",
        "attention.key": "self_attn.k_proj",
        "attention.value": "self_attn.v_proj",
        "attention.output": "self_attn.o_proj",
        "feed_forward_norm": "post_attention_layernorm",
        "feed_forward.gate": "mlp.gate_proj",
        "feed_forward.up": "mlp.up_proj",
        "feed_forward.down": "mlp.down_proj",
    }
    tops = {
        "embedding.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "head.weight": "lm_head.weight",
    }
    names = {}
    for name in parameter_shapes(config):
        if name in tops:
            names[name] = tops[name]
        else:
            _, layer, inner = name.split(".", 2)
            module, kind = inner.rsplit(".", 1)
            names[name] = f"model.layers.{layer}.{renames[module]}.{kind}"
    return names


def _gpt2_tensors(config: ModelConfig) -> dict[str, _Tensor]:
    """GPT-2's layout: [in, out] matrices, query, key and value in one, every bias (zeros without ours).

    Grouped key and value heads are repeated for each of their query heads, which computes the same.
    """
    shapes = parameter_shapes(config)
    hidden = config.hidden_size
    tensors = {
        "transformer.wte.weight": _copy("embedding.weight", shapes["embedding.weight"]),
        "transformer.wpe.weight": _copy("positions.weight", shapes["positions.weight"]),
        "transformer.ln_f.weight": _copy("norm.weight", shapes["norm.weight"]),
        "transformer.ln_f.bias": _bias("norm", hidden, shapes),
    }
    if not config.tied_embeddings:
        tensors["lm_head.weight"] = _copy("head.weight", shapes["head.weight"])
    for layer in range(config.num_layers):
        ours, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        for name, new_name in (("attention_norm", "ln_1"), ("feed_forward_norm", "ln_2")):
            weight = f"{ours}.{name}.weight"
            tensors[f"{theirs}.{new_name}.weight"] = _copy(weight, shapes[weight])
            tensors[f"{theirs}.{new_name}.bias"] = _bias(f"{ours}.{name}", hidden, shapes)
        for name, new_name in (
            ("attention.output", "attn.c_proj"),
            ("feed_forward.up", "mlp.c_fc"),
            ("feed_forward.down", "mlp.c_proj"),
        ):
            rows, columns = shapes[f"{ours}.{name}.weight"]
            tensors[f"{theirs}.{new_name}.weight"] = _transposed(f"{ours}.{name}.weight", (columns, rows))
            tensors[f"{theirs}.{new_name}.bias"] = _bias(f"{ours}.{name}", rows, shapes)
        tensors |= _gpt2_attention(f"{ours}.attention", f"{theirs}.attn.c_attn", config)
    return tensors


def _gpt2_attention(ours: str, theirs: str, config: ModelConfig) -> dict[str, _Tensor]:
    hidden, head_size = config.hidden_size, config.hidden_size // config.num_heads
    groups = config.num_heads // (config.num_kv_heads or config.num_heads)

    def join(kind: str, read: Callable[[str], np.ndarray]) -> np.ndarray:
        query, key, value = (read(f"{ours}.{name}.{kind}") for name in ("query", "key", "value"))
        heads = [x.reshape(-1, head_size, *x.shape[1:]).repeat(groups, axis=0) for x in (key, value)]
        return np.concatenate([query, *(x.reshape(query.shape) for x in heads)])

    def bias(read: Callable[[str], np.ndarray]) -> np.ndarray:
        return join("bias", read) if config.bias else np.zeros(3 * hidden, np.float32)

    return {
        f"{theirs}.weight": _Tensor((hidden, 3 * hidden), lambda read: join("weight", read).T),
        f"{theirs}.bias": _Tensor((3 * hidden,), bias),
    }


def _copy(name: str, shape: tuple[int, ...]) -> _Tensor:
    return _Tensor(shape, lambda read: read(name))


def _transposed(name: str, shape: tuple[int, ...]) -> _Tensor:
    return _Tensor(shape, lambda read: read(name).T)


def _bias(module: str, size: int, shapes: Mapping[str, tuple[int, ...]]) -> _Tensor:
    name = f"{module}.bias"
    return _Tensor((size,), lambda read: read(name) if name in shapes else np.zeros(size, np.float32))


def _write_weights(
    tensors: Mapping[str, _Tensor], config: ModelConfig, fetch: Fetch, folder: Path, max_shard_bytes: int
) -> None:
    """Holds one file's tensors in memory at a time."""
    shapes = parameter_shapes(config)
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name, tensor in tensors.items():
        size = 4 * prod(tensor.shape)
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= size
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        built = {n: tensors[n].build(lambda name: fetch(name).reshape(shapes[name])) for n in names}
        save_file({n: np.ascontiguousarray(x) for n, x in built.items()}, folder / file, {"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        total = sum(4 * prod(tensor.shape) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _write_tokenizer(tokenizer: ExportTokenizer, config: ModelConfig, folder: Path) -> None:
    (folder / "tokenizer.json").write_text(tokenizer.json_text, encoding="utf-8")
    raw = json.loads(tokenizer.json_text)
    special = {token["id"]: token["content"] for token in raw.get("added_tokens", [])}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": special.get(tokenizer.eos_token_id),
        "model_max_length": config.max_seq_len,
        "clean_up_tokenization_spaces": False,
    }
    _write_json(folder / "tokenizer_config.json", settings)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _card(class_name: str, config: ModelConfig, origin: str) -> str:
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {config.name}

A decoder-only Transformer with {num_parameters(config):,} parameters, trained with Phalanx and exported for
`{class_name}`. Weights are the fp32 masters of {origin}.

| | |
|---|---|
| layers | {config.num_layers} |
| width | {config.hidden_size} |
| feed-forward width | {config.ffn_hidden_size} |
| heads (key and value heads) | {config.num_heads} ({config.num_kv_heads}) |
| vocabulary (rows of the embedding) | {config.vocab_size:,} |
| longest sequence | {config.max_seq_len:,} tokens |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("PATH/TO/THIS/FOLDER")
tokenizer = AutoTokenizer.from_pretrained("PATH/TO/THIS/FOLDER")
```
"""

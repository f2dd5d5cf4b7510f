"""From Hugging Face: the inverse of `export`. LlamaForCausalLM and GPT2LMHeadModel become our logical tensors.

What a folder asks for beyond what our Transformer computes is refused, tensor by tensor and setting by setting. Only
safetensors are read: no pickle.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from model.config import Activation, ModelConfig, Norm, Positions
from model.export import llama_names
from model.sizing import parameter_shapes

Read = Callable[[str], np.ndarray]
"""Their tensor's name -> its float32 values, in its own shape."""
CLASSES = ("LlamaForCausalLM", "GPT2LMHeadModel")
_NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


class HuggingFaceWeights:
    """The safetensors of a folder, by name."""

    def __init__(self, folder: Path) -> None:
        """Raises ValueError where there are none."""
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        else:
            files = ["model.safetensors"]
        missing = [file for file in files if Path(file).name != file or not (folder / file).is_file()]
        if missing:
            raise ValueError(f"{folder}/{missing[0]} is missing; only safetensors are read, never a pickle (.bin)")
        self._file_of: dict[str, Path] = {}
        for file in files:
            with safe_open(folder / file, framework="pt") as opened:
                self._file_of |= dict.fromkeys(opened.keys(), folder / file)

    @property
    def names(self) -> list[str]:
        return list(self._file_of)

    def read(self, name: str) -> np.ndarray:
        """float32, in its own shape."""
        with safe_open(self._file_of[name], framework="pt") as opened:
            return np.asarray(opened.get_tensor(name).float().numpy())


def class_of(names: Iterable[str]) -> str | None:
    """The `transformers` class whose names these are; None where they are neither's."""
    known = set(names)
    if "model.embed_tokens.weight" in known:
        return "LlamaForCausalLM"
    if known & {"transformer.wte.weight", "wte.weight"}:
        return "GPT2LMHeadModel"
    return None


def config_from_hugging_face(raw: Mapping[str, Any], name: str) -> tuple[ModelConfig, list[str]]:
    """The model of a config.json, and what is not quite the same. Raises ValueError, one line for each obstacle."""
    classes = raw.get("architectures") or []
    if classes == ["LlamaForCausalLM"]:
        return _llama_config(raw, name), []
    if classes == ["GPT2LMHeadModel"]:
        return _gpt2_config(raw, name)
    raise ValueError(f"architectures={classes} can't be imported; known: {', '.join(CLASSES)}")


def _llama_config(raw: Mapping[str, Any], name: str) -> ModelConfig:
    heads, hidden = raw["num_attention_heads"], raw["hidden_size"]
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    has_bias = bool(raw.get("attention_bias", False))
    needs = {
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
        "head_dim": (raw.get("head_dim") or hidden // heads, hidden // heads),
        "mlp_bias": (bool(raw.get("mlp_bias", False)), has_bias),
    }
    _refuse_others(needs)
    return ModelConfig(
        name=name,
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        num_layers=raw["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=raw.get("num_key_value_heads") or heads,
        ffn_hidden_size=raw["intermediate_size"],
        max_seq_len=raw["max_position_embeddings"],
        positions=Positions.rotary,
        norm=Norm.rmsnorm,
        activation=Activation.swiglu,
        bias=has_bias,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        dropout=float(raw.get("attention_dropout", 0.0)),
        norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10000.0))),
        init_std=float(raw.get("initializer_range", 0.02)),
    )


def _gpt2_config(raw: Mapping[str, Any], name: str) -> tuple[ModelConfig, list[str]]:
    activation = raw.get("activation_function", "gelu_new")
    notes = []
    if activation in {"gelu_new", "gelu_pytorch_tanh"}:
        notes.append(f"activation_function={activation} becomes gelu: their values differ by up to 0.0005")
        activation = "gelu"
    needs = {
        "activation_function": (activation, activation if activation in {"gelu", "relu"} else "gelu"),
        "scale_attn_weights": (raw.get("scale_attn_weights", True), True),
        "scale_attn_by_inverse_layer_idx": (raw.get("scale_attn_by_inverse_layer_idx", False), False),
    }
    _refuse_others(needs)
    config = ModelConfig(
        name=name,
        vocab_size=raw["vocab_size"],
        hidden_size=raw["n_embd"],
        num_layers=raw["n_layer"],
        num_heads=raw["n_head"],
        num_kv_heads=raw["n_head"],
        ffn_hidden_size=raw.get("n_inner") or 4 * raw["n_embd"],
        max_seq_len=raw["n_positions"],
        positions=Positions.learned,
        norm=Norm.layernorm,
        activation=Activation(activation),
        bias=True,
        tied_embeddings=bool(raw.get("tie_word_embeddings", True)),
        dropout=float(raw.get("resid_pdrop", 0.1)),
        norm_eps=float(raw.get("layer_norm_epsilon", 1e-5)),
        init_std=float(raw.get("initializer_range", 0.02)),
    )
    return config, notes


def _refuse_others(needs: Mapping[str, tuple[Any, Any]]) -> None:
    problems = [
        f"{key}={found} can't be imported, {need} is needed" for key, (found, need) in needs.items() if found != need
    ]
    if problems:
        raise ValueError("\n".join(problems))


@dataclass(frozen=True, slots=True)
class _Source:
    """One of our tensors: which of theirs it is made from, and how."""

    names: tuple[str, ...]
    build: Callable[[Read], np.ndarray]


def our_tensors(
    config: ModelConfig, class_name: str, names: Iterable[str], read: Read
) -> dict[str, Callable[[], np.ndarray]]:
    """Our logical tensor -> a call that reads it, flat float32, from tensors of `class_name`.

    Raises ValueError, one line for each tensor that is missing, or that would be lost.
    """
    present = list(names)
    if class_name == "GPT2LMHeadModel" and "wte.weight" in present:  # saved without its head
        bare = read
        read = lambda name: bare(name.removeprefix("transformer."))  # noqa: E731
        present = [f"transformer.{name}" for name in present]
    sources = _llama_sources(config) if class_name == "LlamaForCausalLM" else _gpt2_sources(config)
    wanted = {name for source in sources.values() for name in source.names}
    problems = [f"{name} is missing" for name in sorted(wanted - {*present})]
    problems += [f"{name} is not part of the model" for name in sorted(_lost({*present} - wanted, config, read))]
    if problems:
        raise ValueError("\n".join(problems))
    shapes = parameter_shapes(config)

    def reader(name: str, source: _Source) -> Callable[[], np.ndarray]:
        def build() -> np.ndarray:
            array = source.build(read)
            if array.shape != shapes[name]:
                raise ValueError(f"{name} has shape {list(array.shape)}, the model needs {list(shapes[name])}")
            return np.ascontiguousarray(array, "<f4").reshape(-1)

        return build

    return {name: reader(name, source) for name, source in sources.items()}


def _lost(unused: set[str], config: ModelConfig, read: Read) -> set[str]:
    """What would be lost of the tensors that the model has no place for: a bias of zeros is nothing."""
    lost = {name for name in unused if not name.endswith(_NOT_WEIGHTS)}
    if config.tied_embeddings:
        lost.discard("lm_head.weight")
    if not config.bias:
        lost = {name for name in lost if not (name.endswith(".bias") and not read(name).any())}
    return lost


def _llama_sources(config: ModelConfig) -> dict[str, _Source]:
    return {ours: _same(theirs) for ours, theirs in llama_names(config).items()}


def _gpt2_sources(config: ModelConfig) -> dict[str, _Source]:
    tops = {"embedding": "wte", "positions": "wpe", "norm": "ln_f"}
    inner = {
        "attention_norm": "ln_1",
        "feed_forward_norm": "ln_2",
        "attention.output": "attn.c_proj",
        "feed_forward.up": "mlp.c_fc",
        "feed_forward.down": "mlp.c_proj",
    }
    sources = {}
    for name in parameter_shapes(config):
        module, kind = name.rsplit(".", 1)
        if name == "head.weight":
            sources[name] = _same("lm_head.weight")
        elif module in tops:
            sources[name] = _same(f"transformer.{tops[module]}.{kind}")
        else:
            _, layer, part = module.split(".", 2)
            theirs = f"transformer.h.{layer}"
            if part in inner:
                is_matrix = kind == "weight" and "norm" not in part
                path = f"{theirs}.{inner[part]}.{kind}"
                sources[name] = _transposed(path) if is_matrix else _same(path)
            else:
                sources[name] = _attention_third(f"{theirs}.attn.c_attn.{kind}", part.rpartition(".")[2], config)
    return sources


def _attention_third(theirs: str, part: str, config: ModelConfig) -> _Source:
    """Query, key or value out of the joint matrix; grouped heads are taken back from their repetitions."""
    index = ("query", "key", "value").index(part)
    groups = config.num_heads // (config.num_kv_heads or config.num_heads)
    head_size = config.hidden_size // config.num_heads

    def build(read: Read) -> np.ndarray:
        third = np.split(read(theirs).T, 3)[index]
        if index == 0 or groups == 1:
            return third
        heads = third.reshape(-1, groups, head_size, *third.shape[1:])
        if not (heads == heads[:, :1]).all():
            raise ValueError(
                f"{theirs} has a {part} of its own for every head; use model.num_kv_heads={config.num_heads}"
            )
        return heads[:, 0].reshape(-1, *third.shape[1:])

    return _Source((theirs,), build)


def _same(theirs: str) -> _Source:
    return _Source((theirs,), lambda read: read(theirs))


def _transposed(theirs: str) -> _Source:
    return _Source((theirs,), lambda read: read(theirs).T)

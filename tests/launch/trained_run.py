"""A run folder as training leaves it, made of real parts: data, tokenizer, config, checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import xxhash

from launch.compose import compose, resolved_yaml
from model.config import ModelConfig
from model.initial import initial_value
from model.sizing import parameter_shapes, resolve_vocab
from orchestrator.checkpoint.commit import commit
from orchestrator.checkpoint.layout import Extent, step_folder
from orchestrator.checkpoint.marker import DataState, Marker, gather_payloads
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.store import Store
from orchestrator.codec import encode as to_json
from orchestrator.data.manifest import Manifest, Shard, Split, TokenizerFacts
from orchestrator.data.tokenize import encode, end_of_text_id, train_tokenizer, vocab_size_of
from orchestrator.runfolder import RunFolder

DOCUMENTS = [f"def f_{i}(x):\n    return x * {i}  # żółw {i % 7}\n" for i in range(60)]


def write_data(folder: Path, documents: list[str] = DOCUMENTS) -> Manifest:
    """Prepared data whose validation split is all the documents, in two shards."""
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(documents, 300)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    eos = end_of_text_id(tokenizer, "test")
    tokens = np.concatenate(encode(tokenizer, documents, eos, "<u2"))
    shards = []
    for index, part in enumerate(np.array_split(tokens, 2)):
        file = f"validation_{index}.bin"
        (folder / file).write_bytes(part.tobytes())
        shards.append(Shard(file=file, tokens=part.size, bytes=part.nbytes, xxh3_128=xxhash.xxh3_128_hexdigest(part)))
    text_bytes = sum(len(text.encode()) for text in documents)
    split = Split(documents=len(documents), tokens=tokens.size, text_bytes=text_bytes, shards=tuple(shards))
    manifest = Manifest(
        dtype="uint16",
        tokenizer=TokenizerFacts(
            file="tokenizer.json",
            vocab_size=vocab_size_of(tokenizer),
            eos_token_id=eos,
            xxh3_128=xxhash.xxh3_128_hexdigest((folder / "tokenizer.json").read_bytes()),
        ),
        train=split,
        validation=split,
        source={},
    )
    (folder / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def write_run(
    root: Path, run_id: str, data: Path, manifest: Manifest, *, steps: list[int], words: tuple[str, ...] = ()
) -> RunFolder:
    """A run of model=tiny; a checkpoint's weights are the initial ones of seed `step`, on two ranks."""
    config = compose(["model=tiny", f"data.path={data}", f"run.id={run_id}", f"run.root={root}", *words]).config
    model = resolve_vocab(config.model, manifest.tokenizer.vocab_size)
    folder = RunFolder(root / run_id)
    folder.path.mkdir(parents=True)
    folder.config.write_text(resolved_yaml(config), encoding="utf-8")
    store = Store(config.checkpoint.url or folder.checkpoints)
    for step in steps:
        write_checkpoint(store, step, model, marker_changes={
            "run_id": run_id,
            "data_path": str(data),
            "tokenizer_xxh3_128": manifest.tokenizer.xxh3_128,
            "identity": {"data.isolate_documents": config.data.isolate_documents},
        })  # fmt: skip
    return folder


def write_checkpoint(store: Store, step: int, model: ModelConfig, marker_changes: dict) -> None:
    payloads = []
    for rank in range(2):
        tensors = []
        for name, shape in parameter_shapes(model).items():
            value = initial_value(name, shape, replace(model, init_std=0.15), seed=step).numpy().reshape(-1)
            half = value.size // 2 + 1
            start, count = (0, half) if rank == 0 else (half, value.size - half)
            tensors.append((Extent(name, "master", shape, start, count), value[start : start + count]))
        payloads.append(write_payload(store, step_folder(step), rank, 1, tensors, {}))
    files, entries = gather_payloads(payloads)
    fields = {
        "run_id": "run", "fingerprint": "0" * 16, "identity": {}, "attempt": 1, "step": step, "world_size": 2,
        "zero_stage": 1, "precision": "fp32", "time": 0.0, "data": DataState(step), "model": to_json(model),
        "seq_len": 32, "data_path": None, "tokenizer_xxh3_128": None, "files": files, "tensors": entries,
    }  # fmt: skip
    commit(store, Marker(**(fields | marker_changes)))

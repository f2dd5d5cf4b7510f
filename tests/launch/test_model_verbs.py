"""generate, evaluate and export, from the words a person types to what they print and write."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from trained_run import DOCUMENTS, write_data, write_run

from launch import evaluate, export, generate
from launch.artifact import open_checkpoint
from model.transformer import document_ids
from orchestrator.data.tokenize import load_tokenizer
from orchestrator.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("verbs")
    return root, write_data(root / "data")


@pytest.fixture(scope="module")
def run(prepared):
    root, manifest = prepared
    return write_run(root / "runs", "tiny-1", root / "data", manifest, steps=[1, 2], words=("tracking=jsonl",))


def printed(capsys, verb, *words):
    assert verb.run([str(word) for word in words]) == 0
    return capsys.readouterr().out


def test_the_same_seed_prints_the_same_text(run, capsys):
    words = (run.path, "--prompt", "def f_", "--max-tokens", 20, "--top-k", 50)
    first = printed(capsys, generate, *words)
    assert first.startswith("def f_") and len(first) > len("def f_\n")
    assert printed(capsys, generate, *words) == first
    assert printed(capsys, generate, *words, "--seed", 1) != first
    assert printed(capsys, generate, *words, "--step", 1) != first
    three = printed(capsys, generate, *words, "--count", 3)
    assert f"--- 1 of 3, seed 0\n{first}--- 2 of 3, seed 1\n" in three


def test_an_empty_prompt_starts_a_document(run, capsys):
    """Greedy text from nothing is what follows an end-of-text token."""
    text = printed(capsys, generate, run.path, "--max-tokens", 10, "--temperature", 0)
    artifact = open_checkpoint(str(run.path))
    facts = artifact.manifest.tokenizer
    logits = artifact.load("cpu")(torch.tensor([[facts.eos_token_id]]))[0, 0, : facts.vocab_size]
    first = load_tokenizer(artifact.tokenizer_url).decode([int(logits.argmax())])
    assert text.startswith(first.rstrip("\ufffd"))
    assert len(text) > 1


def test_a_prompt_beyond_the_window_and_bad_numbers_are_refused(run):
    with pytest.raises(ConfigError, match=r"--prompt has \d+ tokens, the model's window .* is 128; leave out"):
        generate.run([str(run.path), "--prompt", "".join(DOCUMENTS)])
    with pytest.raises(ConfigError) as error:
        generate.run([str(run.path), "--temperature=-1", "--top-p=0", "--top-k=0", "--count=0", "--max-tokens=0"])
    assert len(error.value.problems) == 5
    with pytest.raises(ConfigError, match="--temperature=nan"):
        generate.run([str(run.path), "--temperature=nan"])


def reference_loss(run, manifest, data, rows, isolate):
    """Straight from the shards' bytes, one row at a time, with torch's own cross entropy in fp64."""
    artifact = open_checkpoint(str(run.path))
    model = artifact.load("cpu").double()
    tokens = np.concatenate([np.fromfile(data / shard.file, "<u2") for shard in manifest.validation.shards]).astype(
        np.int64
    )
    total = 0.0
    for row in range(rows):
        line = torch.from_numpy(tokens[row * 32 : row * 32 + 33])[None]
        documents = document_ids(line[:, :-1], manifest.tokenizer.eos_token_id) if isolate else None
        with torch.no_grad():
            total += F.cross_entropy(model(line[:, :-1], documents)[0], line[0, 1:], reduction="sum").item()
    return total


@pytest.mark.parametrize("isolate", [False, True])
def test_evaluation_equals_a_plain_computation(prepared, capsys, isolate):
    root, manifest = prepared
    name = f"isolate-{isolate}".lower()
    run = write_run(
        root / "runs", name, root / "data", manifest, steps=[7], words=(f"data.isolate_documents={isolate}",)
    )
    found = json.loads(printed(capsys, evaluate, run.path, "--rows", 5, "--json"))
    loss_sum = reference_loss(run, manifest, root / "data", 5, isolate)
    assert (found["rows"], found["tokens"], found["step"]) == (5, 160, 7)
    assert found["loss"] == pytest.approx(loss_sum / 160, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss_sum / 160), rel=1e-4)
    split = manifest.validation
    bytes_seen = split.text_bytes * 160 / split.tokens
    assert found["bits_per_byte"] == pytest.approx(loss_sum / math.log(2) / bytes_seen, rel=1e-5)


def test_the_whole_split_is_the_default(run, prepared, capsys):
    manifest = prepared[1]
    text = printed(capsys, evaluate, run.path)
    rows = (manifest.validation.tokens - 1) // 32
    assert f"{rows:,} rows, {rows * 32:,} tokens" in text
    assert "loss" in text and "perplexity" in text and "bits per byte" in text
    assert json.loads(printed(capsys, evaluate, run.path, "--rows", 10**6, "--json"))["rows"] == rows


def test_a_split_too_small_for_a_row_and_zero_rows_are_refused(run, tmp_path):
    with pytest.raises(ConfigError, match="--rows=0 must be 1 or more"):
        evaluate.run([str(run.path), "--rows", "0"])
    short = write_run(tmp_path / "runs", "r", tmp_path / "data", write_data(tmp_path / "data", ["a b c"]), steps=[1])
    with pytest.raises(DataError, match=r"a row needs 33; .* data.validation_fraction"):
        evaluate.run([str(short.path)])


def test_export_is_what_transformers_loads(run, tmp_path, capsys):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path / "hf"
    assert "model.safetensors" in printed(capsys, export, run.path, folder, "--step", 1)
    theirs, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    artifact = open_checkpoint(str(run.path), step=1)
    tokens = torch.tensor([tokenizer(DOCUMENTS[0])["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, artifact.load("cpu")(tokens), rtol=1e-5, atol=1e-5)
    assert tokenizer.decode(tokens[0]) == DOCUMENTS[0]
    assert "run `tiny-1`, step 1" in (folder / "README.md").read_text()
    with pytest.raises(ConfigError, match="is not an empty folder; name a new one"):
        export.run([str(run.path), str(folder)])


def test_a_model_no_class_can_hold_is_refused(prepared, tmp_path):
    root, manifest = prepared
    run = write_run(tmp_path / "runs", "r", root / "data", manifest, steps=[1], words=("model.activation=relu",))
    with pytest.raises(ConfigError, match=r"model.activation=relu can't be exported to LlamaForCausalLM"):
        export.run([str(run.path), str(tmp_path / "hf")])
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("verb", ["generate", "evaluate", "export"])
def test_help_has_examples_and_needs_no_torch(verb):
    code = (
        f"import sys; from launch import {verb}\n"
        f"try: {verb}.run(['--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: phalanx {verb}" in done.stdout and "examples:" in done.stdout

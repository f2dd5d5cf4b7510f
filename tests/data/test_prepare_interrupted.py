"""SIGKILL in the middle of the work: the next run of the same command does what was left, and only that."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from prepared import documents, run_prepare, sentence, stream_of, write_jsonl

from orchestrator.data.tokenize import train_tokenizer


def kill_where_it_reads(fifo: Path, settings: dict) -> int:
    """Start `prepare`, kill it when it has opened the FIFO, which lies in its last unit; the exit code."""
    script = Path(__file__).with_name("prepare_process.py")
    process = subprocess.Popen([sys.executable, str(script), json.dumps(settings)])

    def release_if_it_ends_early() -> None:
        process.wait()
        os.close(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK))

    watch = threading.Thread(target=release_if_it_ends_early)
    watch.start()
    writing_end = os.open(fifo, os.O_WRONLY)  # returns when a reader has opened the other
    process.kill()
    watch.join()
    os.close(writing_end)
    return process.wait()


def test_a_killed_prepare_goes_on_where_it_stopped(tmp_path):
    source, target = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    texts = [" ".join([sentence(seed)] * 5000) for seed in range(3)]
    for name, text in zip("abc", texts, strict=True):
        write_jsonl(source / f"{name}.jsonl", [text])
    fifo = source / "d.txt"
    os.mkfifo(fifo)
    tokenizer = tmp_path / "given.json"
    tokenizer.write_text(train_tokenizer(documents(20), 270).to_str())
    settings = {
        "source": f"{source}/*",
        "path": str(target),
        "tokenizer": str(tokenizer),
        "vocab_size": None,
        "validation_fraction": 0.0,
    }
    assert kill_where_it_reads(fifo, settings) == -signal.SIGKILL
    assert sorted(path.name for path in (target / "units").iterdir()) == ["00000.json", "00001.json"]
    assert not (target / "manifest.json").exists()
    kept = {name: (target / name).stat() for name in ("train_00000.bin", "train_00001.bin")}

    writer = threading.Thread(target=lambda: fifo.write_text("the last words"))
    writer.start()
    lines: list[str] = []
    prepared = run_prepare(lines=lines, **settings)
    writer.join()
    assert "2 of 3 units were finished by the run that was interrupted" in lines
    for name, before in kept.items():
        now = (target / name).stat()
        assert (now.st_ino, now.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert not (target / "units").exists()
    assert not (target / "prepare.json").exists()

    undisturbed = tmp_path / "undisturbed"
    fifo.unlink()
    fifo.write_text("the last words")
    run_prepare(**{**settings, "path": str(undisturbed)})
    assert stream_of(target, "train").tolist() == stream_of(undisturbed, "train").tolist()
    assert prepared.manifest.train.documents == 4
    assert {path.name for path in target.iterdir()} == {
        "manifest.json",
        "tokenizer.json",
        *(shard.file for shard in prepared.manifest.train.shards),
    }

"""What a person sees of `phalanx`: help, near misses, exit codes, and the verbs list, cp and schema."""

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch import cli, copy_recipe
from launch.compose import choices, compose, from_yaml, resolved_yaml
from launch.copy_recipe import copy_choice
from launch.keys import key_types
from launch.schema import config_schema, field_docs
from orchestrator.codec import encode
from orchestrator.config import RunSettings, Schedule
from orchestrator.errors import CheckpointError, ConfigError, LifecycleError


def test_without_a_verb_every_verb_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 0
    shown = capsys.readouterr().out
    for verb in cli.VERBS.values():
        assert verb.summary in shown
    assert "examples:" in shown


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("phalanx 0.")


@pytest.mark.parametrize(
    ("word", "start"),
    [
        ("trian", "trian is not a verb; did you mean train? known: prepare, plan, "),
        ("zzz", "zzz is not a verb; known: prepare, plan, "),
        ("a=b", "a=b is not a verb; overrides come after the verb, as in phalanx train a=b; known: "),
    ],
)  # fmt: skip
def test_an_unknown_verb_is_met_with_the_near_miss(word: str, start: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([word]) == 2
    assert capsys.readouterr().err.startswith(start)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"phalanx {verb}" in shown
    assert "examples" in shown.lower()


@pytest.mark.parametrize("verb", [name for name, verb in cli.VERBS.items() if verb.takes_config])
def test_a_wrong_config_is_sentences_on_stderr_and_exit_code_2(
    verb: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main([verb, "train.stepz=3", "model=gpt_125", "optim.lr=-1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    first, second, third = shown.err.splitlines()
    assert first == "train.stepz is not a key; did you mean train.steps?"
    assert second.startswith("model=gpt_125 is not known; did you mean gpt_125m?")
    assert third.startswith("optim.lr=-1.0 is out of range")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["--cfg"], ["--cfg", "job"], ["--cfg=job"]])
def test_cfg_prints_the_resolved_config_and_does_nothing(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", *words, "experiment=quickstart", "train.steps=7"]) == 0
    assert from_yaml(capsys.readouterr().out) == compose(["experiment=quickstart", "train.steps=7"]).config


FAILING_VERBS = {
    "config": (ConfigError("a=1 is wrong; use 2", "b=2 is wrong"), 2, "a=1 is wrong; use 2\nb=2 is wrong\n"),
    "checkpoint": (CheckpointError("the checkpoint is damaged"), 1, "the checkpoint is damaged\n"),
    "full": (OSError(errno.ENOSPC, "No space left", "/d/f"), 2, "no space left at /d/f; free some, "),
    "forbidden": (PermissionError(errno.EACCES, "Forbidden", "/d"), 2, "Forbidden at /d; choose a place"),
    "interrupt": (KeyboardInterrupt(), 130, ""),
    "lifecycle": (LifecycleError("finished after failed"), 1, "finished after failed\n"),
}  # fmt: skip


def verb_file(folder: Path, body: str) -> str:
    """A verb of our own in a real module; returns the module's name."""
    (folder / "phalanx_test_verb.py").write_text(body)
    return "phalanx_test_verb"


def run_verb(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """`phalanx probe` in a process of its own, with `body` as the verb's module."""
    module = verb_file(folder, body)
    script = (
        "import sys; from launch import cli; "
        f"cli.VERBS['probe'] = cli.Verb({module!r}, 'a test'); sys.exit(cli.main(['probe']))"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("case", FAILING_VERBS)
def test_what_a_verb_raises_becomes_a_sentence_and_an_exit_code(case: str, tmp_path: Path) -> None:
    error, code, sentence = FAILING_VERBS[case]
    kind = type(error)
    module, name = kind.__module__, kind.__name__
    body = f"from {module} import {name}\ndef run(argv):\n    raise {name}(*{_args(error)!r})\n"
    done = run_verb(tmp_path, body)
    assert done.returncode == code
    assert done.stderr.startswith(sentence)
    assert "Traceback" not in done.stderr


def _args(error: BaseException) -> tuple[object, ...]:
    """With the file name, which OSError keeps apart."""
    return (*error.args, error.filename) if isinstance(error, OSError) else error.args


def test_what_nobody_expected_is_called_a_bug_with_a_short_traceback(tmp_path: Path) -> None:
    body = "def deeper(n):\n    return deeper(n - 1) if n else {}['nothing']\n"
    body += "def run(argv):\n    return deeper(30)\n"
    done = run_verb(tmp_path, body)
    assert done.returncode == 1
    assert "KeyError: 'nothing'" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("phalanx probe met an error it did not expect: this is a bug")
    assert len(done.stderr.splitlines()) < 25


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    body = "def run(argv):\n    for i in range(10**6):\n        print(i)\n    return 0\n"
    module = verb_file(tmp_path, body)
    script = (
        f"import sys; from launch import cli; cli.VERBS['probe'] = cli.Verb({module!r}, 'a test'); "
        "sys.exit(cli.main(['probe']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "0\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_the_console_script_is_installed_and_answers() -> None:
    script = Path(sys.executable).with_name("phalanx")
    done = subprocess.run([script, "list", "modles"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == ("modles is not known; did you mean models? known: models, experiments, clusters, runs\n")


def test_list_models_gives_parameters_and_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", "models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(choices("model"))
    gpt = rows["gpt_125m"]
    assert (gpt["layers"], gpt["width"], gpt["heads"], gpt["seq"]) == (12, 768, 12, 2048)
    assert 124e6 < gpt["parameters"] < 126e6
    assert [row["parameters"] for row in rows.values()] == sorted(row["parameters"] for row in rows.values())


def test_list_without_a_kind_shows_what_there_is_to_choose_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for group in ("model", "experiment", "cluster"):
        assert all(f"\n{name} " in shown for name in choices(group))


def test_list_runs_reads_the_run_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "demo-1a2b3c4d"
    folder.mkdir()
    (folder / "config.yaml").write_text(resolved_yaml(compose([]).config))
    events = [
        {"t": 1.0, "event": "run_started", "attempt": 1, "step": None},
        {"t": 2.0, "event": "checkpoint_committed", "attempt": 2, "step": 50},
        {"t": 3.0, "event": "run_finished", "attempt": 2, "step": None},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (tmp_path / "not-a-run").mkdir()
    assert cli.main(["list", "runs", "--root", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {
            "name": "demo-1a2b3c4d",
            "started": 1.0,
            "attempts": 2,
            "step": 50,
            "last_event": "run_finished",
            "at": 3.0,
        }
    ]
    assert cli.main(["list", "runs", "--root", str(tmp_path / "none")]) == 0
    assert "phalanx train starts one" in capsys.readouterr().out


def test_a_copied_recipe_composes_under_its_new_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "experiment" / "books.yaml"
    assert cli.main(["cp", "experiment/quickstart", str(target)]) == 0
    assert f"phalanx plan --config-dir {tmp_path} experiment=books" in capsys.readouterr().out
    config = compose(["--config-dir", str(tmp_path), "experiment=books"]).config
    assert config.run.name == "books"
    assert config.model.name == "quickstart"
    original = compose(["experiment=quickstart"]).config
    assert encode(config) | {"run": None} == encode(original) | {"run": None}


def test_a_copied_model_is_named_after_its_file(tmp_path: Path) -> None:
    copy_choice("model", "gpt_125m", tmp_path / "model" / "gpt_mine.yaml")
    assert compose([f"--config-dir={tmp_path}", "model=gpt_mine"]).config.model.name == "gpt_mine"


def test_a_copy_into_a_folder_finds_its_place(tmp_path: Path) -> None:
    assert copy_choice("model", "tiny", tmp_path) == tmp_path / "model" / "my_tiny.yaml"


@pytest.mark.parametrize(
    ("choice", "file", "sentence"),
    [
        ("model/tini", "model/a.yaml", "model/tini is not known; did you mean tiny? known: "),
        ("modle/tiny", "model/a.yaml", "group modle is not known; did you mean model? known: "),
        ("model/tiny", "model/taken.yaml", "model/taken.yaml exists and is left as it is; use"),
        ("model/tiny", "model/gpt_125m.yaml", "model/gpt_125m.yaml has the name of phalanx's own"),
        ("model/tiny", "elsewhere/a.yaml", "elsewhere/a.yaml would not be found: --config-dir"),
    ],
)  # fmt: skip
def test_cp_refuses_what_would_not_work_and_overwrites_nothing(
    choice: str, file: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "model" / "taken.yaml"
    taken.parent.mkdir()
    taken.write_text("mine")
    with pytest.raises(ConfigError, match=f"^{re.escape(sentence)}"):
        copy_recipe.run([choice, file])
    assert taken.read_text() == "mine"
    assert list(tmp_path.rglob("*.yaml")) == [taken]


def leaves(schema: dict[str, object], prefix: str = "") -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = {}
    properties = schema.get("properties", {})
    assert isinstance(properties, dict)
    for name, entry in properties.items():
        found[prefix + name] = entry
        found |= leaves(entry, f"{prefix}{name}.")
    return found


def test_the_schema_has_every_key_with_type_default_and_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == config_schema()
    found = leaves(config_schema())
    assert set(found) == set(key_types())
    assert found["train.global_batch_size"] == {
        "type": "integer",
        "description": "Samples per optimizer step over the whole world; never depends on the world size.",
    }
    assert found["model.num_kv_heads"]["type"] == ["integer", "null"]
    assert found["optim.betas"] == {"type": "array", "items": {"type": "number"}, "default": [0.9, 0.95]}
    assert found["train.precision"] == {"enum": ["fp32", "bf16", "fp16"], "default": "fp32"}
    schedule = found["optim.schedule"]
    assert schedule["enum"] == [member.value for member in Schedule]
    assert "MiniCPM" in str(schedule["description"])


def test_field_docs_are_the_strings_below_the_fields() -> None:
    assert field_docs(RunSettings)["seed"] == "Seeds the initial weights, the data order and dropout."
    assert "root" not in field_docs(RunSettings)

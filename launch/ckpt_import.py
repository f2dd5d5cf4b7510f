"""`phalanx ckpt import`: weights from elsewhere as a committed checkpoint that a run can start from."""

import argparse
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path

import numpy as np

from launch.cli_help import parser
from launch.runs import DEFAULT_ROOT
from model.config import ModelConfig
from model.sizing import parameter_shapes, resolve_vocab, shape_problems
from orchestrator.checkpoint.commit import commit, committed_steps
from orchestrator.checkpoint.key import key_to_write
from orchestrator.checkpoint.layout import Extent, PayloadFile, step_folder
from orchestrator.checkpoint.marker import DataState, Marker, gather_payloads
from orchestrator.checkpoint.payload import write_payload
from orchestrator.checkpoint.plain import FACTS, PlainFolder
from orchestrator.checkpoint.store import Store
from orchestrator.codec import decode, encode
from orchestrator.errors import CheckpointError, ConfigError
from orchestrator.runfolder import RunFolder

EXAMPLES = """  phalanx ckpt import llama-folder/ --run my-llama
  phalanx ckpt import deepspeed-checkpoints/ --run more model=gpt_125m
  phalanx ckpt import exported/ --run more --step 0
  phalanx train run.id=my-llama checkpoint.init_from=runs/my-llama/imported data.path=...

SOURCE is a folder of DeepSpeed's save_checkpoint (ZeRO stage 1, 2 or 3), a Hugging Face folder with safetensors
(LlamaForCausalLM, GPT2LMHeadModel) or one of phalanx ckpt export. At step 0 a run starts with a fresh optimizer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What a source holds, in our names; tensors are read when they are asked for: float32 [numel]."""

    kind: str
    step: int
    model: ModelConfig
    """Resolved."""
    masters: Mapping[str, Callable[[], np.ndarray]]
    moments: Mapping[tuple[str, str], Callable[[], np.ndarray]] = field(default_factory=dict)
    """(tensor, kind)."""
    notes: tuple[str, ...] = ()
    zero_stage: int = 0


def run(argv: list[str]) -> int:
    """Write and commit the checkpoint. Raises ConfigError for what can't be imported, CheckpointError for damage."""
    options = _parser().parse_intermixed_args(argv)
    if options.run is None and options.to is None:
        raise ConfigError("say where the checkpoint goes: --run ID for a run to come, or --to FOLDER")
    if options.step is not None and options.step < 0:
        raise ConfigError(f"--step={options.step} is negative; use 0 or more")
    source = Path(options.source).expanduser()
    if not source.is_dir():
        raise ConfigError(f"{source} is not a folder; name the one that holds the weights")
    key = key_to_write(options.key_file) if options.encrypt else None
    imported = read_source(source, options.overrides)
    step = imported.step if options.step is None else options.step
    url = options.to or str(RunFolder(Path(options.root).expanduser() / options.run).path / "imported")
    store = Store(url, is_private=options.encrypt)
    if step in committed_steps(store):
        raise ConfigError(f"{store.where(step_folder(step))} is there already; import to another place with --to")
    try:
        payload = write_payload(store, step_folder(step), 0, 1, _extents(imported, step), {}, key)
    except ValueError as error:
        raise ConfigError(*(f"{source}: {line}" for line in str(error).splitlines())) from error
    commit(store, _marker(imported, options.run or source.name, step, payload))
    _tell(imported, store, step, options.run, url)
    return 0


def _extents(imported: Imported, step: int) -> Iterator[tuple[Extent, Callable[[], np.ndarray]]]:
    """Whole tensors; at step 0 without moments, which a first step would correct as if there were none."""
    shapes = parameter_shapes(imported.model)
    for name, shape in shapes.items():
        yield Extent(name, "master", shape, 0, prod(shape)), imported.masters[name]
    for (name, kind), read in imported.moments.items():
        if step and name in shapes:
            yield Extent(name, kind, shapes[name], 0, prod(shapes[name])), read


def _marker(imported: Imported, run_id: str, step: int, payload: PayloadFile) -> Marker:
    from orchestrator.control.opening import versions  # here, because it loads fsspec

    encryption = None
    if payload.key_check is not None:
        from orchestrator.checkpoint.encryption import facts

        encryption = facts(payload.key_check)
    files, tensors = gather_payloads([payload])
    return Marker(
        run_id=run_id,
        fingerprint="",
        identity={},
        attempt=1,
        step=step,
        world_size=1,
        zero_stage=imported.zero_stage,
        precision="fp32",
        time=time.time(),
        data=DataState(step),
        model=encode(imported.model),
        seq_len=imported.model.max_seq_len,
        data_path=None,
        tokenizer_xxh3_128=None,
        files=files,
        tensors=tensors,
        optimizer={"imported_from": imported.kind},
        versions=versions(),
        encryption=encryption,
    )


def read_source(source: Path, overrides: list[str]) -> Imported:
    """Opens whichever kind of folder it is. Raises ConfigError or CheckpointError."""
    try:
        if (source / FACTS).is_file():
            return _plain(source, overrides)
        if (source / "config.json").is_file():
            return _hugging_face(source, overrides)
        return _deepspeed(source, overrides)
    except ValueError as error:
        raise ConfigError(*(f"{source}: {line}" for line in str(error).splitlines())) from error


def _plain(source: Path, overrides: list[str]) -> Imported:
    folder = PlainFolder(source)
    try:
        model = decode(ModelConfig, folder.model)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{source} describes a model that this version does not know ({error})") from error
    model = _wanted(overrides, folder.shapes["embedding.weight"][0]) or model
    _refuse_other_shapes(source, model, folder.shapes)
    names = list(folder.shapes)
    return Imported(
        kind="phalanx",
        step=folder.step,
        model=model,
        masters={name: lambda name=name: folder.read(name) for name in names},
        moments={
            (name, kind): lambda name=name, kind=kind: folder.read(name, kind)
            for name in names
            for kind in folder.kinds(name)
            if kind != "master"
        },
    )


def _hugging_face(source: Path, overrides: list[str]) -> Imported:
    import json

    from model.pretrained import HuggingFaceWeights, config_from_hugging_face, our_tensors

    try:
        raw = json.loads((source / "config.json").read_text())
        theirs, notes = config_from_hugging_face(raw, source.resolve().name)
    except KeyError as error:
        raise ConfigError(f"{source}/config.json lacks {error}") from error
    weights = HuggingFaceWeights(source)
    model = _wanted(overrides, raw["vocab_size"]) or theirs
    class_name = raw["architectures"][0]
    masters = our_tensors(model, class_name, weights.names, weights.read)
    return Imported(kind=class_name, step=0, model=model, masters=masters, notes=tuple(notes))


def _deepspeed(source: Path, overrides: list[str]) -> Imported:
    from model.pretrained import class_of, our_tensors
    from orchestrator.checkpoint.deepspeed_folder import DeepSpeedFolder, is_deepspeed_folder

    if not is_deepspeed_folder(source):
        raise ConfigError(
            f"{source} is not a folder that can be imported: it has neither DeepSpeed's latest and zero_pp_rank_* "
            f"files, nor a Hugging Face config.json, nor the {FACTS} of phalanx ckpt export"
        )
    folder = DeepSpeedFolder(source)
    class_name = class_of(folder.shapes)
    top = {None: "embedding.weight", "LlamaForCausalLM": "model.embed_tokens.weight"}.get(
        class_name, "transformer.wte.weight"
    )
    rows = folder.shapes.get(top, folder.shapes.get("wte.weight", (None,)))[0]
    model = _wanted(overrides, rows)
    if model is None:
        raise ConfigError(
            f"{source} does not say what model it is; name it, as in: "
            f"phalanx ckpt import {shlex.quote(str(source))} --run ID model=gpt_125m"
        )
    if class_name is not None:
        # What becomes of the moments of joined matrices is the same cutting: all kinds go through our_tensors.
        def by_kind(kind: str) -> dict[str, Callable[[], np.ndarray]]:
            return our_tensors(
                model, class_name, folder.shapes, lambda name: folder.read(name, kind).reshape(folder.shapes[name])
            )
    else:
        _refuse_other_shapes(source, model, folder.shapes)

        def by_kind(kind: str) -> dict[str, Callable[[], np.ndarray]]:
            return {name: lambda name=name: folder.read(name, kind) for name in parameter_shapes(model)}

    return Imported(
        kind="deepspeed",
        step=folder.step,
        model=model,
        masters=by_kind("master"),
        moments={(name, kind): read for kind in folder.moments for name, read in by_kind(kind).items()},
        zero_stage=folder.zero_stage,
    )


def _wanted(overrides: list[str], vocab_size: int | None) -> ModelConfig | None:
    """The model that was named, its vocabulary that of the source where it names none; None where none was."""
    if not overrides:
        return None
    other = [word for word in overrides if not word.lstrip("+").startswith(("model=", "model.", "experiment="))]
    if other:
        raise ConfigError(
            f"{other[0]} does not say what the model is; only model=NAME and model.KEY=VALUE count here"
        )
    from launch.compose import compose

    model = compose(overrides).config.model
    if model.vocab_size is None:
        model = replace(model, vocab_size=vocab_size)
    return resolve_vocab(model, None)


def _refuse_other_shapes(source: Path, model: ModelConfig, shapes: Mapping[str, tuple[int, ...]]) -> None:
    if problems := shape_problems(model, {name: tuple(shape) for name, shape in shapes.items()}):
        raise ConfigError(*(f"{source} is not model={model.name}: {problem}" for problem in problems))


def _tell(imported: Imported, store: Store, step: int, run_id: str | None, url: str) -> None:
    held = sorted({kind for _, kind in imported.moments}) if step else []
    print(f"{store.where(step_folder(step))}: {len(imported.masters)} tensors from {imported.kind}")
    print(f"  optimizer: {', '.join(held) if held else 'fresh (no moments)'}")
    for note in imported.notes:
        print(f"  note: {note}")
    model = asdict(imported.model)
    words = [f"model.{key}={_word(value)}" for key, value in model.items() if value is not None]
    head = ["phalanx", "train", *([f"run.id={run_id}"] if run_id else []), f"checkpoint.init_from={url}"]
    print("start a run from it:\n  " + shlex.join([*head, *words, "data.path=..."]))


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parser() -> argparse.ArgumentParser:
    parsing = parser(
        "ckpt import", "Turn weights from elsewhere into a committed checkpoint that a run can start from.", EXAMPLES
    )
    parsing.add_argument("source", metavar="SOURCE", help="the folder to import")
    parsing.add_argument("--run", metavar="ID", help="the run that will start from it: it goes to ROOT/ID/imported")
    parsing.add_argument("--root", default=DEFAULT_ROOT, help="where runs lie (default: %(default)s)")
    parsing.add_argument("--to", metavar="URL", help="another folder or URL for the checkpoint")
    parsing.add_argument(
        "--step", type=int, help="optimizer steps already done (default: the source's; 0 without one)"
    )
    parsing.add_argument("--encrypt", action="store_true", help="encrypt it, as checkpoint.encrypt does")
    parsing.add_argument("--key-file", metavar="FILE", help="file with the key (default: $PHALANX_CHECKPOINT_KEY)")
    parsing.add_argument(
        "overrides", nargs="*", metavar="OVERRIDE", help="what the model is: model=NAME, model.KEY=VALUE"
    )
    return parsing

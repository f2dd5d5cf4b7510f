"""A run or a checkpoint by its name, opened for reading: for `generate`, `evaluate` and `export`."""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.compose import from_yaml
from launch.suggest import not_known
from model.config import ModelConfig
from model.sizing import shape_problems
from orchestrator.checkpoint.commit import committed_steps
from orchestrator.checkpoint.layout import step_of
from orchestrator.checkpoint.lineage import WHOLE, Lineage
from orchestrator.checkpoint.reader import CheckpointReader, read_marker
from orchestrator.checkpoint.store import Store
from orchestrator.checkpoint.verify import verify
from orchestrator.codec import decode
from orchestrator.config import CheckpointConfig
from orchestrator.control.rollback import lineage_in
from orchestrator.data import files
from orchestrator.data.manifest import Manifest
from orchestrator.data.shards import read_manifest
from orchestrator.errors import CheckpointError, ConfigError, DataError
from orchestrator.runfolder import RunFolder

if TYPE_CHECKING:
    from model.transformer import Transformer

_MAX_STEPS_NAMED = 10


@dataclass(frozen=True)
class Artifact:
    """One committed, verified checkpoint and the prepared data that it was trained on."""

    reader: CheckpointReader
    model: ModelConfig
    """Resolved."""
    data_path: str | None
    """Where the prepared data is now, as far as anybody knows."""
    run_folder: RunFolder | None = None
    """Of the run that it was named by."""

    @property
    def step(self) -> int:
        return self.reader.marker.step

    @property
    def run_id(self) -> str:
        return self.reader.marker.run_id

    @property
    def seq_len(self) -> int:
        """Tokens per row in training."""
        return self.reader.marker.seq_len

    @property
    def isolates_documents(self) -> bool:
        return bool(self.reader.marker.identity.get("data.isolate_documents", False))

    @cached_property
    def manifest(self) -> Manifest:
        """Of the prepared data. DataError where it is gone or was made with another tokenizer."""
        if self.data_path is None:
            raise DataError(
                f"{self.reader.where} does not say where its prepared data is; name the folder with --data"
            )
        try:
            manifest = read_manifest(self.data_path)
        except DataError as error:
            raise DataError(
                f"the tokenizer of {self.reader.where} can't be found: {error}; "
                "or name the folder of the prepared data with --data"
            ) from error
        wanted = self.reader.marker.tokenizer_xxh3_128
        if wanted is not None and manifest.tokenizer.xxh3_128 != wanted:
            raise DataError(
                f"data.path={self.data_path} was prepared with another tokenizer than {self.reader.where}: "
                f"its xxh3_128 is {manifest.tokenizer.xxh3_128}, the checkpoint needs {wanted}; "
                "name the folder of the right data with --data"
            )
        return manifest

    @cached_property
    def tokenizer_url(self) -> str:
        """Where tokenizer.json lies. DataError where it is missing or changed."""
        url = files.join(self.data_path or "", self.manifest.tokenizer.file)
        if files.file_bytes(url) is None:
            raise DataError(f"{url}, the tokenizer, is missing; restore it or name another folder with --data")
        if files.file_xxh3_128(url) != self.manifest.tokenizer.xxh3_128:
            raise DataError(f"{url} is not the tokenizer that the data was prepared with; restore it")
        return url

    def load(self, device: str) -> "Transformer":
        """The model in fp32 on `cpu` or `cuda`, ready to evaluate."""
        from model.weights import load_transformer

        return load_transformer(self.model, self.reader.read, device)


def add_artifact_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact",
        metavar="RUN_OR_CHECKPOINT",
        help="a run's id or folder, a step_XXXXXXXX folder, or a URL of either's checkpoints",
    )
    parser.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    parser.add_argument("--root", default="runs", help="where runs named by their id lie (default: runs)")
    parser.add_argument("--data", metavar="PATH", help="the prepared data, if it is no longer where it was")


def open_artifact(options: argparse.Namespace) -> Artifact:
    """Open what `add_artifact_arguments` named. Raises ConfigError, DataError or CheckpointError."""
    return open_checkpoint(options.artifact, root=options.root, step=options.step, data_path=options.data)


def open_checkpoint(
    name: str, *, root: str = "runs", step: int | None = None, data_path: str | None = None
) -> Artifact:
    """The checkpoint of `step` (None: the newest) of a run id, run folder, step folder or checkpoint URL.

    Every byte is verified first; nothing is written. ConfigError for what does not exist, CheckpointError for
    what is damaged.
    """
    store, step, key_file, lineage, folder = _locate(name, root, step)
    reader = CheckpointReader(store, read_marker(store, step), key_file)
    if problems := verify(store, step):
        others = [s for s in committed_steps(store, lineage) if s != step]
        way_out = f"; take another with --step: {_listed(others)}" if others else ""
        raise CheckpointError(f"{reader.where} is damaged: {'; '.join(problems)}{way_out}")
    return Artifact(reader, _model_of(reader), data_path or reader.marker.data_path, folder)


def best_device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _locate(name: str, root: str, step: int | None) -> tuple[Store, int, str | None, Lineage, RunFolder | None]:
    """The store, the step, where the run's config says that its key is, what its rollbacks left behind, the run."""
    key_file, lineage, folder = None, WHOLE, None
    parent, _, last = name.rstrip("/").rpartition("/")
    named_step = step_of(last)
    if named_step is not None:
        if step not in (None, named_step):
            raise ConfigError(f"--step={step} contradicts {name}; leave one of them out")
        store, step = Store(parent or "."), named_step
    else:
        store, key_file, lineage, folder = _store_of(name, root)
    steps = committed_steps(store, lineage)
    if not steps:
        raise ConfigError(
            f"{name} has no committed checkpoint under {store.where('')}; train it to its first one "
            "(checkpoint.every_steps)"
        )
    if step is not None and step not in steps:
        raise ConfigError(f"{name} has no committed checkpoint of step {step}; it has {_listed(steps)}")
    return store, steps[-1] if step is None else step, key_file, lineage, folder


def _store_of(name: str, root: str) -> tuple[Store, str | None, Lineage, RunFolder | None]:
    """Where the checkpoints of a run (id or folder) lie; a URL or another folder is such a place itself."""
    if "://" in name:
        return Store(name), None, WHOLE, None
    for folder in (RunFolder(Path(name).expanduser()), RunFolder(Path(root).expanduser() / name)):
        if folder.config.is_file():
            settings = _checkpoint_settings(folder)
            store = Store(settings.url or str(folder.checkpoints))
            return store, settings.key_file, lineage_in(folder.branches), folder
    if Path(name).is_dir():
        return Store(name), None, WHOLE, None
    known = sorted(path.parent.name for path in Path(root).expanduser().glob("*/config.yaml"))
    if not known:
        raise ConfigError(f"{name} is neither a run nor a folder, and {root} has no runs; name its --root")
    raise ConfigError(not_known(f"run {name}", name, known))


def _checkpoint_settings(folder: RunFolder) -> CheckpointConfig:
    try:
        return from_yaml(folder.config.read_text(encoding="utf-8")).checkpoint
    except ConfigError as error:
        raise ConfigError(f"{folder.config}: {error}; name the checkpoint's folder instead") from error


def _model_of(reader: CheckpointReader) -> ModelConfig:
    raw: dict[str, Any] = reader.marker.model
    try:
        model = decode(ModelConfig, raw)
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{reader.where} describes a model that this version does not know ({error})"
        ) from error
    if problems := shape_problems(model, reader.shapes):
        raise CheckpointError(f"{reader.where} does not hold the model it describes: {'; '.join(problems)}")
    return model


def _listed(steps: list[int]) -> str:
    named = ", ".join(map(str, steps[-_MAX_STEPS_NAMED:]))
    return f"..., {named}" if len(steps) > _MAX_STEPS_NAMED else named

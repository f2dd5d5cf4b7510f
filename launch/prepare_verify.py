"""`phalanx prepare --verify`: reads prepared data again, every byte against its checksum."""

import shlex

from launch.progress import ProgressView, plain_console
from orchestrator.config import RunConfig
from orchestrator.data.shards import read_manifest, shard_bytes, verify_shards
from orchestrator.errors import DataError
from orchestrator.observe.units import megabytes_text, plural


def verify(config: RunConfig) -> int:
    """Compare the data in `data.path` with its manifest; the exit code. Raises DataError with all that is damaged."""
    if not config.data.path:
        raise DataError(
            "data.path is not set; name the prepared data: phalanx prepare --verify data.path=prepared/mine"
        )
    path = config.data.path
    manifest = read_manifest(path)
    total_bytes, read_bytes = shard_bytes(manifest), 0
    console = plain_console()
    with ProgressView(console, "verifying") as view:

        def on_read(piece_bytes: int) -> None:
            nonlocal read_bytes
            read_bytes += piece_bytes
            view.show(read_bytes, total_bytes, f"{megabytes_text(read_bytes)} of {megabytes_text(total_bytes)}")

        verify_shards(path, manifest, on_read)
    shards = len(manifest.train.shards) + len(manifest.validation.shards)
    console.print(
        f"data.path={path} verified: {plural(shards, 'shard')} and the tokenizer are what the manifest says\n"
        f"next: {shlex.join(['phalanx', 'train', f'data.path={path}'])}",
        soft_wrap=True,
    )
    return 0

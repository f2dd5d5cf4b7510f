"""Plans of the smallest recipe, and of the largest, for tests of what is planned."""

from launch.compose import compose
from orchestrator.config import RunConfig
from orchestrator.data.manifest import Manifest, Shard, Split, TokenizerFacts
from orchestrator.plan import plan_run
from orchestrator.spec import RunPlan

TINY = ["experiment=tiny_test", "data.path=corpus"]
GPT3 = [
    "model=gpt_175b",
    "cluster=h100x64",
    "cluster.num_workers=1024",
    "parallel=zero3",
    "parallel.activation_checkpointing=true",
    "train=bf16",
    "train.global_batch_size=1024",
    "train.micro_batch_size=1",
    "train.steps=143051",
]


def config_of(*overrides: str) -> RunConfig:
    return compose(overrides).config


def split(tokens: int, checksum: str = "0" * 32) -> Split:
    shard = Shard(file="train_00000.bin", tokens=tokens, bytes=2 * tokens, xxh3_128=checksum)
    return Split(documents=3, tokens=tokens, text_bytes=4 * tokens, shards=(shard,))


def manifest_of(train: int = 100_000, validation: int = 10_000, vocab_size: int = 512) -> Manifest:
    return Manifest(
        dtype="uint16",
        tokenizer=TokenizerFacts(file="tokenizer.json", vocab_size=vocab_size, eos_token_id=0, xxh3_128="1" * 32),
        train=split(train),
        validation=split(validation),
        source={},
    )


def plan_of(*overrides: str, manifest: Manifest | None = None, device: str = "cpu") -> RunPlan:
    return plan_run(config_of(*TINY, *overrides), manifest or manifest_of(), device=device)

"""`phalanx generate`: text from a run or a checkpoint."""

import argparse
from typing import TYPE_CHECKING

from launch.artifact import Artifact, add_artifact_arguments, best_device, open_artifact
from launch.cli_help import parser
from orchestrator.data.tokenize import encode, load_tokenizer
from orchestrator.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EXAMPLES = """  phalanx generate quickstart-1a2b3c4d --prompt 'def main('
  phalanx generate runs/quickstart-1a2b3c4d --step 200 --temperature 0
  phalanx generate runs/quickstart-1a2b3c4d/checkpoints/step_00000400 --top-k 40 --count 3

The same seed prints the same text. A text longer than the model's window goes on from its newest half."""


def run(argv: list[str]) -> int:
    """Print prompt and continuation, `--count` times. Raises ConfigError for what can't work."""
    options = _parser().parse_args(argv)
    if problems := _problems(options):
        raise ConfigError(*problems)
    artifact = open_artifact(options)
    tokenizer = load_tokenizer(artifact.tokenizer_url)
    _print_samples(artifact, tokenizer, _prompt_tokens(artifact, tokenizer, options.prompt), options)
    return 0


def _print_samples(
    artifact: Artifact, tokenizer: "Tokenizer", prompt: list[int], options: argparse.Namespace
) -> None:
    from model.generate import Sampling, generate_tokens

    facts = artifact.manifest.tokenizer
    model = artifact.load(best_device())
    sampling = Sampling(temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
    for sample in range(options.count):
        tokens = generate_tokens(
            model,
            prompt,
            max_tokens=options.max_tokens,
            sampling=sampling,
            seed=options.seed + sample,
            eos_token_id=facts.eos_token_id,
            vocab_size=facts.vocab_size,
        )
        if options.count > 1:
            print(f"--- {sample + 1} of {options.count}, seed {options.seed + sample}")
        # Decoded as a whole: a character may be spread over several tokens.
        print(options.prompt + tokenizer.decode(list(tokens)), flush=True)


def _prompt_tokens(artifact: Artifact, tokenizer: "Tokenizer", prompt: str) -> list[int]:
    """The prompt as the training data would have it; an empty one is the start of a document."""
    facts = artifact.manifest.tokenizer
    tokens = encode(tokenizer, [prompt], facts.eos_token_id, "uint32")[0][:-1].tolist()
    window = artifact.model.max_seq_len
    if len(tokens) > window:
        raise ConfigError(
            f"--prompt has {len(tokens)} tokens, the model's window (model.max_seq_len) is {window}; "
            f"leave out {len(tokens) - window} or more"
        )
    return tokens or [facts.eos_token_id]


def _problems(options: argparse.Namespace) -> list[str]:
    checks = (
        (options.max_tokens >= 1, f"--max-tokens={options.max_tokens} must be 1 or more"),
        (options.temperature >= 0, f"--temperature={options.temperature} must be 0 (greedy) or more"),
        (options.top_k is None or options.top_k >= 1, f"--top-k={options.top_k} must be 1 or more"),
        (0 < options.top_p <= 1, f"--top-p={options.top_p} must be above 0 and at most 1"),
        (0 <= options.seed < 1 << 63, f"--seed={options.seed} must be 0 or more and below 2**63"),
        (options.count >= 1, f"--count={options.count} must be 1 or more"),
    )
    return [problem for is_fine, problem in checks if not is_fine]


def _parser() -> argparse.ArgumentParser:
    parsing = parser("generate", "Continue a prompt with a trained model.", EXAMPLES)
    add_artifact_arguments(parsing)
    parsing.add_argument("--prompt", default="", help="text to continue (default: the start of a document)")
    parsing.add_argument("--max-tokens", type=int, default=200, help="(default: 200)")
    parsing.add_argument("--temperature", type=float, default=0.8, help="0 is greedy (default: 0.8)")
    parsing.add_argument("--top-k", type=int, help="only the k likeliest tokens (default: all)")
    parsing.add_argument("--top-p", type=float, default=1.0, help="only the likeliest that reach p (default: 1)")
    parsing.add_argument("--seed", type=int, default=0, help="sample i uses seed + i (default: 0)")
    parsing.add_argument("--count", type=int, default=1, help="how many texts (default: 1)")
    return parsing

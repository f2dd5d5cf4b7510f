"""`phalanx VERB ...`: imports the verb that was typed; what goes wrong becomes sentences and exit codes."""

import errno
import importlib
import importlib.metadata
import os
import sys
import traceback
from dataclasses import dataclass
from typing import NoReturn

from launch.suggest import near_miss
from orchestrator.errors import EXIT_FAILED, EXIT_USAGE, PhalanxError
from orchestrator.leaving import leave_with

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
TRACEBACK_FRAMES = 6


@dataclass(frozen=True, slots=True)
class Verb:
    module: str
    """Has `run(argv) -> int`; imported when the verb is typed."""
    summary: str
    takes_config: bool = False
    """Takes Hydra overrides, and so `--cfg`."""


VERBS: dict[str, Verb] = {
    "prepare": Verb("launch.cli_prepare", "text -> token shards and a tokenizer", takes_config=True),
    "plan": Verb(
        "launch.plan", "batch algebra, placement, memory and time, before anything starts", takes_config=True
    ),
    "train": Verb("launch.train", "run here or on a Ray cluster; the same command resumes", takes_config=True),
    "submit": Verb(
        "launch.submit", "the same run as a SLURM job or a KubeRay RayJob; --dry-run shows it", takes_config=True
    ),
    "sweep": Verb("launch.sweep", "many trials of one recipe on one cluster; resumable"),
    "status": Verb("launch.status", "which runs there are and how they are"),
    "logs": Verb("launch.logs", "what a rank printed"),
    "cancel": Verb("launch.cancel", "end a run, saved first: its SLURM job or its driver"),
    "report": Verb("launch.report", "loss, speed, failures and their cost as one page"),
    "rerun": Verb("launch.rerun", "a run again from its start, as a new run"),
    "sync": Verb("launch.sync", "send W&B what it lacks of a run"),
    "ckpt": Verb("launch.ckpt", "ls, verify, prune, export, import checkpoints"),
    "generate": Verb("launch.generate", "text from a run or a checkpoint"),
    "evaluate": Verb("launch.evaluate", "loss, perplexity and bits per byte on the validation split"),
    "export": Verb("launch.export", "a checkpoint as Hugging Face safetensors"),
    "list": Verb("launch.listing", "models, experiments, clusters and runs"),
    "cp": Verb("launch.copy_recipe", "copy a recipe to edit"),
    "cluster": Verb("launch.cluster", "Ray on a list of hosts, by ssh; a SLURM cluster on this machine"),
    "schema": Verb("launch.schema", "the JSON schema of the config"),
    "completion": Verb("launch.completion", "tab completion for bash, zsh and fish"),
    "prove": Verb(
        "launch.prove", "train a config's twin with and without kills, and compare every step", takes_config=True
    ),
    "simulate": Verb(
        "launch.simulate", "the real controller under a virtual clock: failures, goodput to expect", takes_config=True
    ),
    "doctor": Verb("launch.doctor", "is this environment fit to train in? row by row, each with its cure"),
    "demo": Verb("launch.demo", "the main job end to end, with a worker killed in the middle"),
}

EXAMPLES = """examples:
  phalanx prepare experiment=quickstart
  phalanx train experiment=quickstart
  phalanx plan model=gpt_1_3b cluster=h100x8 parallel.zero_stage=2
  phalanx train model=tiny data.path=prepared/stdlib cluster.num_workers=2 train.steps=20
  phalanx status

Overrides are written KEY=VALUE; GROUP=NAME picks a choice, experiment=NAME a whole recipe.
phalanx VERB --help tells more of each, phalanx list what there is to choose from.
Exit codes: 0 done; 1 the run failed; 2 wrong config or arguments; 75 stopped early but resumable."""


def main(argv: list[str] | None = None) -> int:
    """What `phalanx` does with its arguments; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(f"phalanx {importlib.metadata.version('phalanx')}")
        return 0
    name, *rest = words
    if name not in VERBS:
        return _refuse_verb(name)
    try:
        code = _run(VERBS[name], rest)
        sys.stdout.flush()
        return code
    except SystemExit as error:  # argparse: --help is 0, a wrong option 2
        return error.code if isinstance(error.code, int) else EXIT_USAGE
    except (KeyboardInterrupt, Exception) as error:
        return _report(error, name)


def overview() -> str:
    """The help of `phalanx` itself: a line for each verb."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return (
        "usage: phalanx VERB [options] [overrides]\n\n"
        "Trains large Transformers on many GPUs and keeps training when things break.\n\n"
        f"verbs:\n{verbs}\n\n{EXAMPLES}"
    )


def _run(verb: Verb, argv: list[str]) -> int:
    cfg, rest = _without_cfg(argv)
    if verb.takes_config and cfg and not {"-h", "--help"} & {*argv}:
        from launch.compose import compose, resolved_yaml

        print(resolved_yaml(compose(rest).config), end="")
        return 0
    return int(importlib.import_module(verb.module).run(argv))


def _without_cfg(argv: list[str]) -> tuple[bool, list[str]]:
    """Whether `--cfg` (or Hydra's `--cfg job`) is there, and the arguments without it."""
    if "--cfg=job" in argv:
        return True, [word for word in argv if word != "--cfg=job"]
    if "--cfg" not in argv:
        return False, argv
    place = argv.index("--cfg")
    after = argv[place + 1 :]
    return True, argv[:place] + (after[1:] if after[:1] == ["job"] else after)


def _refuse_verb(name: str) -> int:
    near = near_miss(name, VERBS)
    hint = f"did you mean {near}? " if near else ""
    if "=" in name:
        hint = f"overrides come after the verb, as in phalanx train {name}; "
    print(f"{name} is not a verb; {hint}known: {', '.join(VERBS)}", file=sys.stderr)
    return EXIT_USAGE


def _report(error: BaseException, name: str) -> int:
    """Say what went wrong on stderr; returns the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # Whoever read our output has gone (`phalanx list | head`); Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    if isinstance(error, PhalanxError):
        print(error, file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and (sentence := _storage_sentence(error)):
        print(sentence, file=sys.stderr)
        return EXIT_USAGE
    print("".join(traceback.format_exception(error, limit=-TRACEBACK_FRAMES)), end="", file=sys.stderr)
    print(
        f"phalanx {name} met an error it did not expect: this is a bug in phalanx; "
        "please report it with the lines above",
        file=sys.stderr,
    )
    return EXIT_FAILED


def _storage_sentence(error: OSError) -> str | None:
    """For a full or forbidden place, which the person can cure; None for any other OSError."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"no space left{where}; free some, or write elsewhere with run.root, data.path or "
            "checkpoint.url, then repeat the command: it goes on from what is complete"
        )
    if error.filename and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.strerror}{where}; choose a place you may write to, or change its rights"
    return None


def console() -> NoReturn:
    """The console script."""
    leave_with(main)


if __name__ == "__main__":
    console()

"""`phalanx completion`: what a shell offers after a tab. The shells ask `candidates` with the line so far."""

import contextlib
import importlib
import io
import re
from collections.abc import Iterable
from dataclasses import is_dataclass
from enum import Enum

from launch.cli_help import parser

EXAMPLES = """  source <(phalanx completion bash)                          for this shell only
  phalanx completion bash > ~/.local/share/bash-completion/completions/phalanx
  phalanx completion zsh > ~/.zfunc/_phalanx                 with fpath+=~/.zfunc before compinit
  phalanx completion fish > ~/.config/fish/completions/phalanx.fish

Completes verbs, options, ids of runs, GROUP=CHOICE and every KEY= of the config."""
ASK = "--candidates"
TAKES_RUN = frozenset({"status", "logs", "report", "rerun", "sync", "cancel", "generate", "evaluate", "export"})
SCRIPTS = {
    # Bash takes `=` for the end of a word: what stands before it is on the line already.
    "bash": f"""_phalanx() {{
    local line=${{COMP_LINE:0:COMP_POINT}} IFS=$'\\n'
    local current=${{line##*[[:space:]]}}
    local before=${{current%"${{current##*[=:]}}"}}
    COMPREPLY=($(phalanx completion {ASK} "$line" 2>/dev/null))
    [[ ${{#COMPREPLY[@]}} -eq 1 && ${{COMPREPLY[0]}} == *= ]] && compopt -o nospace 2>/dev/null
    COMPREPLY=("${{COMPREPLY[@]#"$before"}}")
    return 0
}}
complete -F _phalanx phalanx
""",
    "zsh": f"""#compdef phalanx
_phalanx() {{
    local -a found
    found=("${{(@f)$(phalanx completion {ASK} "${{(j: :)words[1,CURRENT]}}" 2>/dev/null)}}")
    compadd -Q -S '' -- $found
}}
compdef _phalanx phalanx
""",
    "fish": f"""complete -c phalanx -f -a '(phalanx completion {ASK} (commandline -cp) 2>/dev/null)'
""",
}


def run(argv: list[str]) -> int:
    """Print a shell's script, or the candidates for a line."""
    if argv[:1] == [ASK] and len(argv) == 2:
        print("\n".join(candidates(argv[1])))
        return 0
    reader = parser("completion", "Print what makes a shell complete phalanx' words.", EXAMPLES, "bash|zsh|fish")
    reader.add_argument("shell", choices=sorted(SCRIPTS), help="whose script")
    print(SCRIPTS[reader.parse_args(argv).shell], end="")
    return 0


def candidates(line: str) -> list[str]:
    """Words that may stand where the line's last word is, sorted; `phalanx tr` has `train`."""
    words = line.split()[1:]
    current = words.pop() if words and not line[-1].isspace() else ""
    return sorted({word for word in _known(words, current) if word.startswith(current)})


def _known(before: list[str], current: str) -> Iterable[str]:
    from launch.cli import VERBS

    name = before[0] if before else ""
    if name not in VERBS:
        return [] if before else [*VERBS, "--help", "--version"]
    if current.startswith("-"):
        return _options(VERBS[name].module)
    if VERBS[name].takes_config or name == "sweep":
        return _overrides(current)
    if name in TAKES_RUN:
        return _runs(before)
    words = {"list": ("clusters", "experiments", "models", "runs"), "completion": tuple(SCRIPTS)}
    return _choices("{}/{}") if name == "cp" else words.get(name, ())


def _options(module: str) -> list[str]:
    """From the verb's own help."""
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        importlib.import_module(module).run(["--help"])
    return ["--help", *re.findall(r"(?<![\w-])--[a-z][a-z-]+", shown.getvalue().partition("examples:")[0])]


def _overrides(current: str) -> list[str]:
    """GROUP=CHOICE and KEY=VALUE where the values are known, else KEY=."""
    from launch.keys import key_types, split_optional

    key, equals, _ = current.partition("=")
    if not equals:
        keys = [name for name, kind in key_types().items() if not is_dataclass(kind)]
        return [f"{name}=" for name in (*keys, *_groups())]
    if key in _groups():
        return _choices("{}={}", only=key)
    kind = split_optional(key_types().get(key))[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [f"{key}={member.value}" for member in kind]
    return [f"{key}=true", f"{key}=false"] if kind is bool else []


def _groups() -> tuple[str, ...]:
    from launch.compose import GROUPS

    return GROUPS


def _choices(form: str, *, only: str | None = None) -> list[str]:
    from launch.compose import choices

    return [form.format(group, name) for group in _groups() if only in (None, group) for name in choices(group)]


def _runs(before: list[str]) -> list[str]:
    from launch.runs import DEFAULT_ROOT, known_runs

    return known_runs(before[before.index("--root") + 1] if "--root" in before[:-1] else DEFAULT_ROOT)

"""`phalanx cp`: copies a recipe, or one choice of a group, to a file of one's own to edit."""

import re
import shlex
from pathlib import Path

from launch.cli_help import parser
from launch.compose import GROUPS, choice_file, choices
from launch.suggest import not_known
from orchestrator.errors import ConfigError

EXAMPLES = """  phalanx cp experiment/quickstart my_conf/experiment/books.yaml
  phalanx train --config-dir my_conf experiment=books
  phalanx cp model/gpt_125m my_conf/model/gpt_200m.yaml
  phalanx cp experiment/quickstart my_conf          the same name with my_ before it"""


def run(argv: list[str]) -> int:
    """Copy GROUP/NAME to FILE. Raises ConfigError where either does not fit; never overwrites."""
    reader = parser("cp", "Copy a recipe (or one choice of a group) to edit.", EXAMPLES, "GROUP/NAME FILE")
    reader.add_argument("choice", metavar="GROUP/NAME", help="experiment/quickstart, model/gpt_125m, ...")
    reader.add_argument("file", metavar="FILE", help="a new .yaml file, best in a folder named as the group")
    options = reader.parse_args(argv)
    group, name = _known_choice(options.choice)
    target = copy_choice(group, name, Path(options.file))
    print(f"{target}: edit it, then")
    print(f"  {shlex.join(['phalanx', 'plan', '--config-dir', str(target.parent.parent), f'{group}={target.stem}'])}")
    return 0


def copy_choice(group: str, name: str, target: Path) -> Path:
    """Write the choice to `target` (a folder gets GROUP/my_NAME.yaml); its `name:` follows the file's."""
    if target.suffix != ".yaml":
        target = target / group / f"my_{name}.yaml"
    if target.parent.name != group:
        raise ConfigError(
            f"{target} would not be found: --config-dir looks in folders named as the groups; "
            f"use {target.parent / group / target.name}"
        )
    if target.stem in choices(group):
        raise ConfigError(f"{target} has the name of phalanx's own {group}={target.stem}; use another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    text = choice_file(group, name).read_text()
    renamed = re.sub(rf"^(\s*name: ){re.escape(name)}$", rf"\g<1>{target.stem}", text, flags=re.MULTILINE)
    try:
        with target.open("x") as file:
            file.write(renamed)
    except FileExistsError:
        raise ConfigError(f"{target} exists and is left as it is; use another name or remove it") from None
    return target


def _known_choice(choice: str) -> tuple[str, str]:
    group, _, name = choice.removesuffix(".yaml").partition("/")
    if group not in GROUPS:
        raise ConfigError(not_known(f"group {group}", group, GROUPS))
    if name not in choices(group):
        raise ConfigError(not_known(f"{group}/{name}", name, choices(group)))
    return group, name

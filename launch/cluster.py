"""`phalanx cluster`: clusters of several hosts to run on. Each kind has a file of its own."""

import importlib

from launch.cli_help import parser

_KINDS = {
    "up": ("launch.cluster_hosts", "start Ray on a list of hosts, by ssh; it stays until `down`"),
    "down": ("launch.cluster_hosts", "end exactly that"),
    "status": ("launch.cluster_hosts", "what clusters there are, and each of their hosts"),
    "virtual": ("launch.cluster_virtual", "a SLURM cluster of several hosts on this machine, to try job scripts"),
}
"""Word -> (module, summary)."""
_EXAMPLES = """  phalanx cluster up node1 node2 node3
  phalanx cluster status
  phalanx cluster down
  phalanx cluster virtual up 3
  phalanx cluster virtual --help"""


def run(argv: list[str]) -> int:
    """The verb; the exit code."""
    if argv[:1] and argv[0] in _KINDS:
        module, _ = _KINDS[argv[0]]
        words = argv[1:] if argv[0] == "virtual" else argv
        return int(importlib.import_module(module).run(words))
    parsing = parser("cluster", "Clusters of several hosts to run on.", _EXAMPLES, "|".join(_KINDS) + " ...")
    kinds = parsing.add_subparsers(required=True, metavar="|".join(_KINDS))
    for name, (_, summary) in _KINDS.items():
        kinds.add_parser(name, help=summary)
    parsing.parse_args(argv)
    return 0

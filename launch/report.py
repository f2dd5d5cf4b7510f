"""`phalanx report`: a run's report, as a page and as text. Reads files only."""

from pathlib import Path

from launch.cli_help import parser
from launch.runs import find_run
from orchestrator.report.writing import write_report

EXAMPLES = """  phalanx report quickstart-1a2b3c4d      writes report.html and report.md into its folder
  phalanx report runs/first               also while it runs, and after it failed
  xdg-open $(phalanx report first)        standard output is the page's path and nothing else

Loss and speed with every failure marked, where the time went, what each failure cost, memory, data, checkpoints,
predicted against measured, what was changed against the recipe. One file, no script, no network. At the end of a
run it is written by itself."""


def run(argv: list[str]) -> int:
    """Write both files and print the page's path."""
    reader = parser("report", "A run's report as one page, and as Markdown beside it.", EXAMPLES, "RUN [--root DIR]")
    reader.add_argument("run", metavar="RUN", help="a run's id or folder")
    reader.add_argument("--root", type=Path, default=Path("runs"), help="where the runs are (default: runs)")
    arguments = reader.parse_args(argv)
    print(write_report(find_run(arguments.run, arguments.root)))
    return 0

"""The pages: links lead somewhere, docs/configuration.md is what the dataclasses say, every verb has its how-to."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.cli import VERBS
from launch.schema import config_schema

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "slurm").glob("*.md")])
CONFIGURATION = ROOT / "docs" / "configuration.md"
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
EXAMPLE = re.compile(r"```bash\n(?P<lines>.*?)^```$", re.MULTILINE | re.DOTALL)
MAX_REPORT_BYTES = 300_000
INTRODUCTION = """\
# Configuration

Every key, generated from the dataclasses in `orchestrator/config.py` and `model/config.py`. Don't edit this page:
`PHALANX_WRITE_GOLDEN=1 .venv/bin/python -m pytest tests/test_docs.py` writes it anew.

A key is set by `KEY=VALUE`. Where the default is *needed*, a file of the group's folder in `conf/` gives it.
`phalanx train --cfg ...` prints the config that a command line stands for, `phalanx schema` this page as JSON schema.
"""


def anchors(page: Path) -> set[str]:
    """What a page's headings are called in links."""
    headings = re.findall(r"^#+ (.+)$", CODE_FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_local_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.finditer(CODE_FENCE.sub("", page.read_text())):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        linked = (page.parent / target).resolve() if target else page
        assert linked.exists(), f"{page.name} links to {target}, which does not exist"
        assert linked.is_relative_to(ROOT), f"{page.name} links to {target}, outside of the repository"
        if anchor:
            assert anchor in anchors(linked), f"{page.name} links to {link['target']}: no such heading"


def test_the_scan_sees_pages_and_links() -> None:
    assert {"README.md", "design.md"} <= {page.name for page in PAGES}
    assert len(LINK.findall((ROOT / "README.md").read_text())) > 3


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_section_with_an_example(verb: str) -> None:
    _, *sections = re.split(r"^## ", (ROOT / "docs" / "verbs.md").read_text(), flags=re.MULTILINE)
    (section,) = [each for each in sections if verb in each.partition("\n")[0].split(", ")]
    examples = "".join(block["lines"] for block in EXAMPLE.finditer(section))
    assert re.search(rf"\bphalanx {verb}\b", examples)


def test_the_example_of_a_report_is_one_small_page_that_tells_of_a_lost_worker_and_of_nobodys_folders() -> None:
    page = (ROOT / "docs" / "report.html").read_text()
    assert len(page.encode()) < MAX_REPORT_BYTES
    assert "was killed by signal 9 (SIGKILL)" in page
    assert re.findall(r"(?<![\w.])/(?:home|root|tmp|work|var|Users)/[^\s<\"]*", page) == []
    assert re.findall(r"""(?:src|href)=["']?(?!["'#]|data:)[^"'\s>]*""", page) == []


def test_configuration_page_is_current() -> None:
    page = configuration_page(config_schema())
    if os.environ.get("PHALANX_WRITE_GOLDEN") == "1":
        CONFIGURATION.write_text(page)
    assert CONFIGURATION.read_text() == page, "PHALANX_WRITE_GOLDEN=1 writes docs/configuration.md anew"


def configuration_page(schema: dict[str, Any]) -> str:
    """A table for each group: key, type, default, meaning."""
    parts = [INTRODUCTION]
    for group, group_schema in schema["properties"].items():
        parts.append(f"\n## {group}\n\n| key | type | default | meaning |\n|---|---|---|---|\n")
        parts += rows(group, group_schema)
    return "".join(parts)


def rows(prefix: str, schema: dict[str, Any]) -> Iterator[str]:
    for name, field in schema["properties"].items():
        key = f"{prefix}.{name}"
        if "properties" in field:
            yield from rows(key, field)
            continue
        default = "*needed*" if name in schema["required"] else f"`{json.dumps(field.get('default'))}`"
        meaning = field.get("description", "").replace("|", "\\|")
        yield f"| `{key}` | {type_words(field)} | {default} | {meaning} |\n"


def type_words(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type", "any")
    if kind == "array":
        return f"list of {type_words(field['items'])}"
    return " or ".join(kind) if isinstance(kind, list) else kind

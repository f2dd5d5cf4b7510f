"""What any of our pages must be, told from its text."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta", "link", "br", "hr", "img", "input", "col", "base", "source", "wbr"}


class _Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self._note(attributes)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self._note(attributes)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def _note(self, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src") and value:
                self.targets.append(value)
            assert not name.startswith("on"), f"{name} is a script"


def check_page(text: str) -> None:
    """Balanced, its drawings are XML, its links lead to itself, no script, no address of a network."""
    parser = _Balance()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert len(parser.ids) == len({*parser.ids})
    for target in parser.targets:
        assert target == "data:," or (target.startswith("#") and target[1:] in parser.ids), target
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert "<script" not in text
    assert not re.search(r"url\(|@import|https?://", text)
    assert "nan" not in re.sub(r"<title>.*?</title>|<pre.*?</pre>", "", text, flags=re.DOTALL).lower().split()

"""Generated text against reviewed text in tests/golden/; PHALANX_WRITE_GOLDEN=1 writes it anew."""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def check_golden(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("PHALANX_WRITE_GOLDEN") == "1":
        path.write_text(text)
    assert text == path.read_text(), f"{path.name} differs; PHALANX_WRITE_GOLDEN=1 writes it anew"

"""The page in headless Chromium: what it asks a network for, how it reads in light and dark, wide and narrow."""

import re
from pathlib import Path

import pytest
from browser import hosts_of_page, need_chromium, opened
from synthetic import disturbed_run

from orchestrator.report.page import POLICY
from orchestrator.report.writing import write_report

pytestmark = pytest.mark.real

PROBE = """<script>
const ratio = (a, b) => {
  const light = (words) => words.match(/[0-9.]+/g).slice(0, 3).map(Number)
    .map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [.2126, .7152, .0722][place], 0);
  const [low, high] = [light(a), light(b)].sort((x, y) => x - y);
  return (high + .05) / (low + .05);
};
const ground = getComputedStyle(document.body).backgroundColor;
const words = [...document.querySelectorAll("h1, td, th, .note, .state, small, h3 span, .legend span")];
const least = Math.min(...words.map((word) => ratio(getComputedStyle(word).color, ground)));
const wide = document.documentElement.scrollWidth - innerWidth;
const empty = [...document.querySelectorAll("svg")].filter((svg) => svg.getBoundingClientRect().height < 10).length;
document.body.dataset.found = [ground, least.toFixed(2), wide, empty].join(" | ");
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_chromium()
    folder = disturbed_run(tmp_path_factory.mktemp("browser") / "runs/demo", 400, every=90)
    return write_report(folder, is_at_end=True)


def test_the_page_asks_no_network(page: Path, tmp_path: Path) -> None:
    assert hosts_of_page(page, tmp_path / "blank.html") == set()


def test_a_page_that_asked_one_would_be_found_out(page: Path, tmp_path: Path) -> None:
    """And the page's own policy would have kept it from asking."""
    image = '<img src="http://images.example/a.png"></main>'
    protected, open_page = tmp_path / "protected.html", tmp_path / "open.html"
    protected.write_text(page.read_text().replace("</main>", image))
    open_page.write_text(protected.read_text().replace(POLICY, ""))
    assert hosts_of_page(open_page, tmp_path / "blank.html") == {"images.example"}
    assert hosts_of_page(protected, tmp_path / "blank.html") == set()


def test_the_browser_reads_the_page_as_it_was_written(page: Path) -> None:
    written, read = page.read_text(), opened(page, "--dump-dom")
    for tag in ("svg", "table", "tr", "path", "section", "a", "text"):
        assert len(re.findall(rf"<{tag}[ >]", read)) == len(re.findall(rf"<{tag}[ >]", written)), tag


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize(("scheme", "ground"), [("1", "rgb(255, 255, 255)"), ("0", "rgb(20, 23, 27)")])
def test_it_can_be_read_in_light_and_dark_wide_and_narrow(
    page: Path, tmp_path: Path, scheme: str, ground: str, width: int
) -> None:
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace(POLICY, "").replace("</main>", f"</main>{PROBE}"))
    read = opened(
        probed, f"--blink-settings=preferredColorScheme={scheme}", f"--window-size={width},900", "--dump-dom"
    )
    found = re.search(r'data-found="([^"]+)"', read)
    assert found is not None
    colour, contrast, overhang, empty = found[1].split(" | ")
    assert colour == ground
    assert float(contrast) >= 4.5  # WCAG AA for text
    assert int(overhang) <= 0
    assert int(empty) == 0

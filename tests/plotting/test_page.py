"""The page of figures, as text and in a real browser."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from eplb import metrics
from eplb.placement import Placement, linear
from eplb.plan import Plan
from eplb.plotting import Sweep, build_page, timeline_of
from eplb.plotting.palette import GROUND, INK, MUTED, SERIES, variables
from eplb.report import Report
from eplb.trace import LoadTrace

from ..helpers import ROOT, random_loads
from .browser import needs_browser, open_page, photograph, probe

NAME = "<plan> & \"Co\" $1$ {'x'}.json"
FIGURES = ["load-0", "load-1", "by-layer", "over-time", "sweep", "gaps"]


def served(placement: Placement, trace: LoadTrace, moves: int = 0) -> Report:
    """The report of a placement, with a re-plan in the middle when there are moves."""
    loads = metrics.rank_loads(trace.tokens, placement)
    num_live = placement.num_ranks - len(placement.excluded_ranks)
    sent = np.zeros(trace.num_windows, np.int64)
    sent[trace.num_windows // 2] = moves
    return Report(
        trace.layer_ids,
        np.arange(trace.num_windows),
        loads.sum(axis=2) / num_live,
        metrics.peak_loads(loads),
        num_live,
        moves=sent,
        rank_load=loads.mean(axis=0),
    )


def page_of(num_layers: int, num_experts: int, slots: int, num_ranks: int, windows: int) -> str:
    """A page with every figure."""
    ids = np.arange(3, 3 + num_layers)
    trace = LoadTrace(random_loads(1, windows, num_layers, num_experts), layer_ids=ids)
    least = -(-num_experts // num_ranks) * num_ranks
    old, new = (linear(num_layers, num_experts, count, num_ranks) for count in (least, slots))
    reports = {"linear": served(old, trace), NAME: served(new, trace)}
    peak = reports[NAME].balance.peak_load
    plan = Plan(
        new, ids, peak_load=peak, lower_bound=peak / 1.02, status=["heuristic"] * num_layers
    )
    points = [{"redundant": float(n), "mean_balancedness": b} for n, b in ((0, 0.8), (8, 0.9))]
    return build_page(
        {NAME: plan},
        reports,
        "<6> windows",
        {"walk & Co": timeline_of(served(new, trace, 24))},
        Sweep(tuple(points), ({"redundant": 8.0},)),
    )


@pytest.fixture(scope="module")
def page() -> str:
    """Four layers of sixteen experts on four GPUs."""
    return page_of(4, 16, 24, 4, 6)


@pytest.fixture
def file(page: str, tmp_path: Path) -> Path:
    """The page as a file."""
    path = tmp_path / "report.html"
    path.write_text(page)
    return path


class Reader(HTMLParser):
    """The elements of a page, checked for balance."""

    VOID = ("meta", "br", "image", "path", "use")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attrs for name, attrs in self.found if name == tag)


def test_the_page_is_whole_and_every_figure_is_in_it(page: str) -> None:
    """Elements are closed, ids are given once, figures are images with a name and a caption."""
    read = Reader(page)
    assert not read.open
    assert [attrs["id"] for attrs in read.all("figure")] == FIGURES
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in read.all("svg"))
    assert page.count("<figcaption>") == len(FIGURES)
    ids = [attrs["id"] for _, attrs in read.found if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', page):
        assert target in ids
    assert page.count("<image") == 4, "two heat maps and their scales"


def test_the_page_needs_nothing_but_itself(page: str) -> None:
    """No script, no address, no file: and the browser is told to refuse any."""
    read = Reader(page)
    assert not {"script", "link", "iframe", "img", "base", "object"} & {
        tag for tag, _ in read.found
    }
    assert "http://" not in page and "https://" not in page and "@import" not in page
    for _, attrs in read.found:
        assert not [key for key in attrs if key.startswith("on") or key == "src"]
        for key in ("href", "xlink:href"):
            assert (attrs.get(key) or "#").startswith(("#", "data:image/png;base64,"))
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page


def test_names_are_text_whatever_they_hold(page: str) -> None:
    """Markup, quotes and dollars in names are shown, not obeyed."""
    assert "<plan>" not in page and "<6>" not in page
    assert unescape(page).count(NAME) > 5


def test_letters_are_letters(page: str) -> None:
    """Figures are searched and read aloud: their text is no outline of it."""
    assert ">load ÷ mean of the layer</text>" in page
    assert ">redundant experts a layer</text>" in page
    assert "DejaVuSans-" not in page


def test_tables_have_the_numbers(page: str) -> None:
    """A row a placement, a row a layer, a row a point of the sweep, each with its head."""
    heads = re.findall(r'<th scope="row"[^>]*>(.*?)</th>', page)
    assert [unescape(head) for head in heads] == [
        "linear", NAME, "walk & Co", "0", "8", "3", "4", "5", "6",
    ]  # fmt: skip
    assert page.count("<caption>") == page.count("<table>") == 4
    assert ">2.00%</td>" in page and ">heuristic</td>" in page and ">knee</td>" in page
    assert "<td>24</td>" in page, "copies that the walk sent"


def test_parts_that_are_not_given_are_said_to_be_missing() -> None:
    """One plan with a GPU out of service, no bound, no sweep, no walk: still a page."""
    trace = LoadTrace(random_loads(1, 2, 1, 4))
    slots = np.array([[0, 1, 2, 3, -1, -1]])
    plan = Plan(Placement(slots, 4, 3, excluded_ranks=(2,)), np.arange(1))
    text = build_page({"p": plan}, {"p": served(plan.placement, trace)})
    assert "p carries no lower bound." in text
    assert "given as --sweep" in text and "given as --walk" in text
    assert [attrs["id"] for attrs in Reader(text).all("figure")] == [
        "load-0", "by-layer", "over-time",
    ]  # fmt: skip


def test_a_large_plan_stays_small() -> None:
    """DeepSeek-V3's layers on 320 GPUs, 40 windows: well below two megabytes."""
    assert len(page_of(58, 256, 640, 320, 40).encode()) < 1_000_000


def test_the_same_input_gives_the_same_bytes(page: str) -> None:
    """In another process, under another seed of hashing and other settings of matplotlib."""
    code = (
        "import matplotlib, sys; matplotlib.rcParams['lines.linewidth'] = 7\n"
        "from tests.plotting.test_page import page_of\n"
        "sys.stdout.buffer.write(page_of(4, 16, 24, 4, 6).encode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "7"},
    )
    assert done.stdout.decode() == page


def luminance(colour: tuple[float, ...]) -> float:
    """Relative luminance, as WCAG 2 defines it, of red, green and blue in 0 … 1."""
    linear_ = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear_, strict=True))


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """From 1 to 21."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def rgb(text: str) -> tuple[float, ...]:
    """Of `#rrggbb` or of the browser's `rgb(r, g, b)`."""
    if text.startswith("#"):
        return tuple(int(text[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return tuple(int(value) / 255 for value in re.findall(r"\d+", text)[:3])


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_of_text_and_curves_stand_out(scheme: int) -> None:
    """At least 4.5 to 1 from the ground, in either scheme."""
    for pair in (INK, MUTED, *SERIES):
        assert contrast(rgb(pair[scheme]), rgb(GROUND[scheme])) >= 4.5, pair


def test_the_sheet_has_a_value_for_each_variable_in_both_schemes(page: str) -> None:
    """And figures use no variable that it lacks, nor a colour of light ground in the dark."""
    light, dark = variables()
    assert light.keys() == dark.keys()
    sheet, figures = page.split("</style>", 1)
    for name in set(re.findall(r"var\(--([\w-]+)\)", page)) - {"font"}:
        assert f"--{name}: {light[name]}" in sheet and f"--{name}: {dark[name]}" in sheet
    assert not re.findall(r"#[0-9a-f]{6}\b", figures.replace("&#x27;", "'"))


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_renders_it_without_complaint(file: Path, tmp_path: Path, scheme: str) -> None:
    """The page as it is: nothing on the console, the ground of the scheme, ink in every part."""
    picture = tmp_path / "page.png"
    assert photograph(file, scheme, picture) == []
    pixels = matplotlib.image.imread(picture)[:, :, :3]
    ground = rgb(GROUND[scheme == "dark"])
    assert np.allclose(pixels[:20, :5], ground, atol=0.01)
    for part in np.array_split(pixels, 8):
        ink = np.abs(part - ground).max(axis=2) > 0.2
        assert ink.mean() > 0.003, "a part of the page is empty"
    orange = (pixels[:, :, 0] > pixels[:, :, 2] + 0.15).mean()
    blue = (pixels[:, :, 2] > pixels[:, :, 0] + 0.15).mean()
    assert orange > 0.005 and blue > 0.005, "the heat maps have no colours"


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_shows_labelled_figures_that_can_be_read(file: Path, scheme: str) -> None:
    """Figures have sizes, names, captions and letters; what is written contrasts with the ground as
    the browser computes it."""
    seen = probe(file, scheme)
    assert seen["dark"] == (scheme == "dark")
    assert len(seen["figures"]) == len(FIGURES)
    for figure in seen["figures"]:
        assert figure["role"] == "img" and figure["label"] and figure["caption"]
        assert figure["size"][0] > 400 and figure["size"][1] > 100
        assert {"layer", "window", "redundant experts a layer"} & set(figure["texts"])
        assert all(min(size) > 3 for size in figure["images"])
    assert seen["headless"] == 0, "a table without heads"
    assert len(seen["colours"]) > 100
    for colour in set(seen["colours"]):
        assert contrast(rgb(colour), rgb(seen["ground"])) >= 4.5, colour
    assert {rgb(colour) for colour in seen["lines"]} >= {
        rgb(pair[scheme == "dark"]) for pair in SERIES[:3]
    }


@needs_browser
def test_browser_fits_it_on_a_phone(file: Path) -> None:
    """Only tables and wide figures scroll sideways, not the page."""
    assert probe(file, "light", 500)["overflow"] <= 0


@needs_browser
def test_browser_refuses_what_is_not_in_the_file(file: Path) -> None:
    """A script or picture that found its way in would be blocked, and these tests would see it."""
    file.write_text(
        file.read_text().replace(
            "</main>", '<script>document.title = "x"</script><img src="a.png" alt=""></main>'
        )
    )
    text, console = open_page(file, "light", "--dump-dom")
    assert len(console) == 2 and all("Content Security Policy" in line for line in console)
    assert "<title>x</title>" not in text

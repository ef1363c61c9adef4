"""`eplb report` as a stranger uses it."""

import json
import os
import sys
from pathlib import Path

import pytest

from ..helpers import eplb, random_loads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of ten windows, a plan made from the first six, a walk and a sweep."""
    folder = tmp_path_factory.mktemp("report")
    loads = folder / "loads.json"
    loads.write_text(json.dumps(random_loads(1, 10, 3, 16).tolist()))
    sizes = ("--gpus", 4, "--redundant", 8, "--effort", "fast", "-q")
    for name, windows in (("new", ":6"), ("old", ":3")):
        plan = folder / f"{name}.json"
        assert eplb("plan", loads, "--windows", windows, *sizes, "-o", plan).code == 0
    rows = [
        {"window": window, "mean_balancedness": 0.9, "worst_balancedness": 0.8, "efficiency": 0.9,
         "moves": 5 * (window == 8), "peak_load": [3000.0, 3000.0, 4000.0]}
        for window in range(4, 10)
    ]  # fmt: skip
    walk = {"format": "eplb-report", "version": 1, "windows": rows,
            "layers": [{"layer": layer} for layer in range(3)]}  # fmt: skip
    (folder / "walk.json").write_text(json.dumps(walk))
    points = [
        {"redundant": n, "held_out": {"mean_balancedness": b}} for n, b in ((0, 0.8), (8, 0.9))
    ]
    sweep = {"format": "eplb-sweep", "version": 1, "points": points, "knee": [{"redundant": 8}]}
    (folder / "sweep.json").write_text(json.dumps(sweep))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where the page goes."""
    return tmp_path / "report.html"


def test_the_page_is_of_windows_that_the_plan_did_not_see(folder: Path, out: Path) -> None:
    """Beside the engines' start and the published greedy; the folder's name is not on it."""
    ending = eplb("report", folder / "loads.json", "--plan", folder / "new.json", "-o", out)
    assert ending.code == 0
    assert "4 windows of loads.json; 6 that a plan was made from are left out" in " ".join(
        ending.out.split()
    )
    page = out.read_text()
    assert "<h1>new.json</h1>" in page and str(folder) not in page
    for name in ("linear", "deepseek"):
        assert f'<th scope="row" class="left">{name}</th>' in page


def test_figures_agree_with_simulate(folder: Path, out: Path) -> None:
    """What the page says of a plan is what `simulate` says."""
    args = [folder / "loads.json", "--plan", folder / "new.json", "-q"]
    assert eplb("report", *args, "-o", out).code == 0
    summary = json.loads(eplb("simulate", *args, "--json").out)["summary"]
    page = out.read_text()
    for key in ("mean_balancedness", "worst_balancedness", "p95_balancedness", "efficiency"):
        assert f" → {summary[key]:.3f}</b>" in page


def test_walk_sweep_and_further_plans_are_drawn(folder: Path, out: Path) -> None:
    """Each under the name of its file."""
    ending = eplb(
        "report", folder / "loads.json", "--plan", folder / "new.json",
        "--plan", folder / "old.json", "--walk", folder / "walk.json",
        "--sweep", folder / "sweep.json", "-o", out,
    )  # fmt: skip
    assert ending.code == 0, ending.err
    page = out.read_text()
    assert page.count("<figure ") == 4 + 4, "four heat maps and four others"
    assert "<td>1</td><td>5</td>" in page, "one re-plan that sent five copies"
    assert ">knee</td>" in page and ">old.json</text>" in page and ">copies sent</text>" in page


def test_the_same_input_gives_the_same_bytes(folder: Path, out: Path) -> None:
    """Wherever the page is written."""
    args = ["report", folder / "loads.json", "--plan", folder / "new.json", "--in-sample", "-q"]
    assert eplb(*args, "-o", out).code == 0
    first = out.read_bytes()
    assert eplb(*args, "-o", out, "--force").code == 0
    assert out.read_bytes() == first
    assert b"10 windows of loads.json, in-sample" in first


def test_files_of_one_name_are_told_apart_by_their_paths(
    folder: Path, out: Path, tmp_path: Path
) -> None:
    """Rather than one standing for both."""
    twin = tmp_path / "new.json"
    twin.write_bytes((folder / "old.json").read_bytes())
    args = ["--plan", folder / "new.json", "--plan", twin]
    assert eplb("report", folder / "loads.json", *args, "-o", out).code == 0
    assert str(twin) in out.read_text() and str(folder / "new.json") in out.read_text()


@pytest.mark.parametrize("name", ["linear", "deepseek"])
def test_files_named_as_what_plans_are_compared_with_stand_for_themselves(
    folder: Path, out: Path, tmp_path: Path, name: str
) -> None:
    """Plans and walks alike are then called by their paths."""
    twins = [tmp_path / kind / name for kind in ("plans", "walks")]
    for twin, original in zip(twins, ("new.json", "walk.json"), strict=True):
        twin.parent.mkdir()
        twin.write_bytes((folder / original).read_bytes())
    args = (folder / "loads.json", "--plan", twins[0], "-o", out)
    assert eplb("report", *args).code == 0
    page = out.read_text()
    assert f"<h1>{twins[0]}</h1>" in page and page.count(" → ") == 4
    plan = ("--plan", folder / "new.json", "--walk", twins[1])
    assert eplb("report", folder / "loads.json", *plan, "-o", out, "--force").code == 0
    page = out.read_text()
    assert f">{twins[1]}</text>" in page and f">{name}</text>" in page


def test_names_of_files_may_be_no_text(folder: Path, out: Path, tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are shown as such."""
    plan = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff.json"))
    plan.write_bytes((folder / "new.json").read_bytes())
    ending = eplb("report", folder / "loads.json", "--plan", plan, "-o", out)
    assert ending.code == 0, ending.err
    assert ">p\N{REPLACEMENT CHARACTER}.json</text>" in out.read_text()


def test_mistakes_are_found_before_the_work(folder: Path, out: Path) -> None:
    """Each with its code and its reason, and no page."""
    loads, plan = folder / "loads.json", ("--plan", folder / "new.json")
    other = json.loads((folder / "walk.json").read_text())
    other["layers"].pop()
    foreign = out.with_name("foreign.json")
    foreign.write_text(json.dumps(other))
    for args, code, message in (
        ((loads, *plan), 2, "-o report.html"),
        ((loads, "-o", out), 2, "--plan"),
        ((loads, *plan, "-o", folder / "old.json"), 2, "exists; --force overwrites it"),
        ((loads, *plan, "-o", plan[1], "--force"), 2, "would overwrite a file that is read"),
        ((loads, *plan, "-o", out, "--walk", plan[1]), 2, "new.json: the format is 'eplb-plan'"),
        ((loads, *plan, "-o", out, "--sweep", loads), 2, "loads.json: the format is 'list'"),
        ((loads, *plan, "-o", out, "--sweep", "no.json"), 2, "no.json cannot be read"),
        ((loads, *plan, "-o", out, "--walk", foreign), 4, "foreign.json is a report of 2 layers"),
    ):
        ending = eplb("report", *args)
        assert ending.code == code and message in ending.err, ending.err
    assert not out.exists()


def test_without_matplotlib_its_extra_is_named(
    folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planner itself does without."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    ending = eplb("report", folder / "loads.json", "--plan", folder / "new.json", "-o", out)
    assert ending.code == 2 and "pip install 'eplb[plot]'" in ending.err

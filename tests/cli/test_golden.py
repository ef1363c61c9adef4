"""The texts people see, kept word for word; `make golden` rewrites them."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from eplb_cli.main import COMMANDS

from ..helpers import SAMPLES, eplb

Golden = Callable[[str, str], None]
TINY = "tiny-dsv3.npz"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_golden_help(golden: Golden, command: str) -> None:
    """Every command has help, and every command's help has an example."""
    text = eplb(*command.split(), "--help").out
    golden(f"help-{command or 'eplb'}.txt", text)
    assert not command or re.search(r"Examples?:\n +eplb ", text)


@pytest.fixture
def _among_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside the samples: a path that differs between machines breaks lines elsewhere."""
    for sample in SAMPLES.iterdir():
        (tmp_path / sample.name).symlink_to(sample)
    monkeypatch.chdir(tmp_path)


def _neutral(text: str) -> str:
    """Without what differs between runs: seconds."""
    return re.sub(r"\d+\.\d s$", "… s", text, flags=re.MULTILINE)


CASES = {
    "tiny-dsv3-8": [TINY, "--gpus", "8"],
    "tiny-dsv3-16-nodes-4": [TINY, "--gpus", "16", "--nodes", "4"],
    "tiny-dsv3-16-nodes-4-free": [TINY, "--gpus", "16", "--nodes", "4", "--node-rule", "free"],
    "tiny-dsv3-8-deepseek": [TINY, "--gpus", "8", "--strategy", "deepseek"],
    "mixtral-8": ["synthetic-mixtral.json", "--gpus", "8"],
}


@pytest.mark.usefixtures("_among_samples")
@pytest.mark.parametrize("name", CASES)
def test_golden_plans(golden: Golden, name: str) -> None:
    """A plan of each sample, and the screens that describe it."""
    planned = eplb("plan", *CASES[name], "-o", "plan.json")
    shown = eplb("show", "plan.json")
    maps = [
        line.rstrip(",")
        for line in Path("plan.json").read_text().splitlines()
        if re.fullmatch(r"\[[\d,]+\],?", line)
    ]
    text = "\n".join([planned.out, shown.out, *maps, ""])
    golden(f"plan-{name}.txt", _neutral(text))


@pytest.mark.usefixtures("_among_samples")
def test_golden_inspect(golden: Golden) -> None:
    """What is said of the recorded routes."""
    golden("inspect-routes.txt", _neutral(eplb("inspect", "tiny-dsv3-routes.npz").out))

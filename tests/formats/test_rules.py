"""Rules files and baselines."""

import json
from pathlib import Path

import pytest

from eplb.errors import InputError
from eplb.formats.rules import Baseline, Rules, read_baseline, read_rules

WHOLE = """
[check]
plan = "plan.json"
traces = ["a.npz", "/b.npz", "-"]
fail_if = ["mean_balancedness < 0.9", "moves > 3"]
baseline = "old/report.json"
tolerance = "0.5%"
"""


def test_a_rules_file_is_read(tmp_path: Path) -> None:
    """Every key; paths start at the file's own folder, absolute ones and standard input stay."""
    path = tmp_path / "eplb.toml"
    path.write_text(WHOLE)
    assert read_rules(str(path)) == Rules(
        plan=f"{tmp_path}/plan.json",
        traces=(f"{tmp_path}/a.npz", "/b.npz", "-"),
        fail_if=("mean_balancedness < 0.9", "moves > 3"),
        baseline=f"{tmp_path}/old/report.json",
        tolerance="0.5%",
    )


def test_beside_the_working_folder_paths_stay_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`eplb.toml` in the working folder leaves its paths as they are."""
    monkeypatch.chdir(tmp_path)
    Path("eplb.toml").write_text('[check]\nplan = "p.json"')
    assert read_rules("eplb.toml") == Rules(plan="p.json")


@pytest.mark.parametrize(
    ("text", "tolerance"), [("0.005", "0.005"), ("0", "0"), ('"1%"', "1%"), ("5e-3", "0.005")]
)
def test_a_tolerance_may_be_a_number(tmp_path: Path, text: str, tolerance: str) -> None:
    """Of TOML's own kinds."""
    path = tmp_path / "eplb.toml"
    path.write_text(f"[check]\ntolerance = {text}")
    assert read_rules(str(path)).tolerance == tolerance


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"has no table \[check\], where the rules of the gate are expected"),
        (b"[check\n", "is not valid TOML: .*line 1"),
        (b"plan = 1\nplan = 2", "is not valid TOML"),
        (b"\xff\xfe", "is no UTF-8 text: byte 0 is not"),
        (b"[chek]", r"no table is called 'chek' \('check' is meant\?\); known: check"),
        (b"[check]\n[tool.eplb]", "no table is called 'tool'; known: check"),
        (b"check = 3", r"has no table \[check\]"),
        (b'[check]\nfail-if = ["x < 1"]', r"\[check\]: no key is called 'fail-if' \('fail_if' is"),
        (
            b'[check]\ntrace = "a"',
            r"no key is called 'trace' \('traces' is meant\?\); known: plan,",
        ),
        (b"[check]\nzzz = 1", "no key is called 'zzz'; known: plan, traces, fail_if, baseline, t"),
        (b"[check]\nplan = 3", "plan is 3; the name of a file is expected"),
        (b'[check]\nbaseline = ""', "baseline is ''; the name of a file is expected"),
        (b'[check]\ntraces = "a.npz"', r"traces is 'a.npz'; a list of texts, \['...'\], is"),
        (b'[check]\nfail_if = "x < 1"', "fail_if is 'x < 1'; a list of texts"),
        (b"[check]\nfail_if = [0.9]", r"fail_if is \[0.9\]; a list of texts"),
        (b"[check]\ntolerance = true", 'tolerance is True; "0.5%" or 0.005 is expected'),
        (b"[check]\ntolerance = [1]", r'tolerance is \[1\]; "0.5%" or 0.005 is expected'),
    ],
)
def test_hostile_rules(tmp_path: Path, content: bytes, message: str) -> None:
    """Whatever is not understood is refused, by the name of the file."""
    path = tmp_path / "eplb.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as raised:
        read_rules(str(path))
    assert str(raised.value).startswith(str(path))


def test_a_rules_file_that_is_not_there(tmp_path: Path) -> None:
    """Named as any other file."""
    with pytest.raises(InputError, match=r"none\.toml cannot be read: No such file"):
        read_rules(str(tmp_path / "none.toml"))


@pytest.mark.parametrize(
    ("further", "counts"),
    [
        ({}, (None, None, None)),
        ({"windows": [], "layers": []}, (None, None, None)),
        ({"windows": [{}, {}], "layers": [{}], "in_sample": False}, (2, 1, False)),
        ({"windows": 3, "in_sample": "no"}, (None, None, None)),
    ],
)
def test_a_baseline_says_what_it_was_scored_on(
    tmp_path: Path, further: dict[str, object], counts: tuple[object, ...]
) -> None:
    """Where it does; a report cut down to its summary is a baseline too."""
    path = tmp_path / "report.json"
    summary = {"mean_balancedness": 0.9, "moves": 0}
    path.write_text(
        json.dumps({"format": "eplb-report", "version": 1, "summary": summary, **further})
    )
    assert read_baseline(str(path)) == Baseline(str(path), summary, *counts)  # type: ignore[arg-type]


def test_a_plan_is_no_baseline(tmp_path: Path) -> None:
    """Nor is standard input, which nothing could update."""
    path = tmp_path / "plan.json"
    path.write_text('{"format": "eplb-plan", "version": 1}')
    with pytest.raises(InputError, match=r"plan\.json: the format is 'eplb-plan'; a report"):
        read_baseline(str(path))
    with pytest.raises(InputError, match="--baseline - ; the name of a report file"):
        read_baseline("-")

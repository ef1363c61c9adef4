"""The report file."""

import json
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.formats.reports import read_report, report_bytes
from eplb.report import Report

REPORT = Report(
    layer_ids=np.array([3, 4]),
    windows=np.array([5, 7]),
    mean_load=np.array([[4.0, 8.0], [4.0, 8.0]]),
    peak_load=np.array([[8.0, 8.0], [4.0, 16.0]]),
    num_ranks=2,
    moves=np.array([0, 3]),
    rank_load=np.array([[2.0, 6.0], [4.0, 12.0]]),
    constants={"hbm_bandwidth": 1.0},
)


def test_a_report_reads_back(tmp_path: Path) -> None:
    """The summary is what it was, and windows and layers are there by number."""
    path = tmp_path / "r.json"
    data = report_bytes(REPORT, {"plan": "p.json"})
    path.write_bytes(data)
    assert read_report(str(path))["summary"] == REPORT.summary()
    content = json.loads(data)
    assert (content["format"], content["version"], content["plan"]) == ("eplb-report", 1, "p.json")
    assert [row["window"] for row in content["windows"]] == [5, 7]
    assert content["windows"][1] == {
        "window": 7, "mean_balancedness": 0.75, "worst_balancedness": 0.5, "efficiency": 0.6,
        "moves": 3, "peak_load": [4.0, 16.0],
    }  # fmt: skip
    assert content["layers"][0] == {
        "layer": 3, "mean_balancedness": 0.75, "p95_balancedness": 0.5, "worst_balancedness": 0.5,
        "mean_load": 4.0, "peak_load": 6.0, "rank_load": [2.0, 6.0],
    }  # fmt: skip
    assert content["model_constants"] == {"hbm_bandwidth": 1.0}
    assert data == report_bytes(REPORT, {"plan": "p.json"})


HOSTILE = {
    "no report": ('{"format": "eplb-plan"}', "the format is 'eplb-plan'"),
    "a list": ("[]", "the format is 'list'"),
    "a later version": ('{"format": "eplb-report", "version": 2}', "version 2"),
    "no summary": ('{"format": "eplb-report", "version": 1}', "no 'summary'"),
    "a text for a figure": (
        '{"format": "eplb-report", "version": 1, "summary": {"efficiency": "good"}}',
        "summary.efficiency is 'good'",
    ),
    "a NaN": ('{"format": "eplb-report", "version": 1, "summary": {"a": NaN}}', "NaN"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_reports_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so, with the file's name."""
    text, message = HOSTILE[what]
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_report(str(path))
    assert str(path) in str(caught.value)

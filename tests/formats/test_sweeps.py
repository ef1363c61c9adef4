"""The sweep file."""

import json
from pathlib import Path
from typing import Any

import pytest

from eplb.errors import InputError
from eplb.formats.sweeps import read_points, sweep_bytes

POINT: dict[str, Any] = {"gpus": 8, "redundant": 8, "held_out": None, "digest": "ab"}


def test_points_are_lines_of_a_versioned_object(tmp_path: Path) -> None:
    """A point a line; what is written is read again, finished or not."""
    data = sweep_bytes([POINT, {**POINT, "digest": "cd"}], [{"reason": "why"}], [{"redundant": 8}])
    content = json.loads(data)
    assert (content["format"], content["version"]) == ("eplb-sweep", 1)
    assert (content["complete"], content["knee"]) == (True, [{"redundant": 8}])
    assert content["skipped"] == [{"reason": "why"}]
    assert sum(line.startswith(b'{"gpus"') for line in data.splitlines()) == 2
    path = tmp_path / "sweep.json"
    path.write_bytes(data)
    assert read_points(str(path)) == content["points"] == [POINT, {**POINT, "digest": "cd"}]


def test_a_sweep_under_way_has_no_knee() -> None:
    """And says that it is not complete."""
    content = json.loads(sweep_bytes([], [], None))
    assert (content["complete"], content["knee"], content["points"]) == (False, None, [])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "sweep.json: the format is 'list'; a sweep"),
        ({"points": []}, "the format is None; a sweep"),
        ({"format": "eplb-plan"}, "the format is 'eplb-plan'; a sweep"),
        (
            {"format": "eplb-sweep", "version": 2},
            "the sweep is version 2; this eplb reads version 1",
        ),
        ({"format": "eplb-sweep", "version": 1}, "'points' must be a list"),
        ({"format": "eplb-sweep", "version": 1, "points": [1]}, "'points' must be a list"),
        ({"format": "eplb-sweep", "version": 1, "points": [{}]}, "each with its 'digest'"),
        (
            {"format": "eplb-sweep", "version": 1, "points": [{"digest": 3}]},
            "each with its 'digest'",
        ),
    ],
)
def test_files_that_are_no_sweeps(tmp_path: Path, content: Any, message: str) -> None:
    """Each is refused by name, with what is wrong."""
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_points(str(path))

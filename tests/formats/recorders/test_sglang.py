"""SGLang's expert counts."""

import json
from pathlib import Path

import pytest

from eplb.errors import InputError
from eplb.formats.traces import read_trace
from eplb.trace import LoadTrace


def test_counts_of_all_decoder_layers(tmp_path: Path) -> None:
    """Rows are decoder layers; the dense ones are zero and keep their numbers until dropped."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"logical_count": [[0, 0], [3, 4]], "rank": 0, "colour": 1}))
    reading = read_trace(str(path))
    assert isinstance(reading.trace, LoadTrace)
    assert reading.trace.tokens.tolist() == [[[0, 0], [3, 4]]]
    assert reading.trace.dense_layers().tolist() == [True, False]
    assert (reading.format, reading.notes) == ("sglang", ("unknown key 'colour' was left aside",))


def test_passes_are_windows(tmp_path: Path) -> None:
    """A leading axis of forward passes is the windows."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"logical_count": [[[1, 2]], [[3, 4]]]}))
    assert read_trace(str(path)).trace.tokens.shape == (2, 1, 2)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("counts", "message"),
    [(7, "no list"), ([[1, 2], [3]], r"logical_count\[1\] has 1 entries"), ([], "is empty")],
)
def test_hostile_counts(tmp_path: Path, counts: object, message: str) -> None:
    """The key is named in the message."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"logical_count": counts}))
    with pytest.raises(InputError, match=message):
        read_trace(str(path))

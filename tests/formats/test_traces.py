"""Traces found by their content, and what the user knows of them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from eplb.errors import InputError, RefusedError
from eplb.formats.traces import read_trace
from eplb.placement import Placement
from eplb.trace import LoadTrace

# Two experts in three slots.
LIVE = Placement(np.array([[1, 0, 1]]), 2, num_ranks=1)


def _sglang(folder: Path) -> None:
    counts = torch.ones((2, 1, 2), dtype=torch.int32)
    torch.save({"rank": 0, "logical_count": counts}, folder / "expert_distribution_recorder_1.pt")


def _mindie(folder: Path) -> None:
    (folder / "decode_0.csv").write_text("1,2\n")


def _megatron(folder: Path) -> None:
    (folder / "rank0.jsonl").write_text(json.dumps({"iter": 1, "layer": 0, "tpe": [[1, 2]]}))


def _old_sglang(folder: Path) -> None:
    table = "layer_id,expert_id,count\n0,1,5\n"
    (folder / "expert_distribution_rank0_timestamp1.csv").write_text(table)


@pytest.mark.parametrize(
    ("writers", "names"),
    [
        ((_sglang, _mindie), "two recordings, sglang and mindie"),
        ((_megatron, _mindie), "two recordings, mindie and megatron"),
        ((_sglang, _old_sglang), r"rank0_timestamp1.csv: there is no 'logical_count'"),
    ],
)
def test_a_folder_is_one_recording(tmp_path: Path, writers: object, names: str) -> None:
    """Which of two is meant, nobody can know."""
    for write in writers:  # type: ignore[attr-defined]
        write(tmp_path)
    with pytest.raises(InputError, match=names):
        read_trace(str(tmp_path))


def test_files_beside_dumps_are_told_apart_from_them(tmp_path: Path) -> None:
    """The recorder's own come first, whatever the others are called."""
    _sglang(tmp_path)
    torch.save(torch.ones((1, 2)), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"a.pt: there is no 'logical_count'"):
        read_trace(str(tmp_path))


def test_a_subfolder_among_dumps_is_named(tmp_path: Path) -> None:
    """The folder is not taken for one of no recording."""
    _sglang(tmp_path)
    (tmp_path / "old.pt").mkdir()
    with pytest.raises(InputError, match=r"old\.pt is no plain file"):
        read_trace(str(tmp_path))


def test_bare_lists_of_slots_are_folded(tmp_path: Path) -> None:
    """As bare arrays are; without the placement that was live nobody can tell."""
    path = tmp_path / "t.json"
    path.write_text("[[5, 6, 7]]")
    reading = read_trace(str(path), recorded_under=LIVE)
    assert isinstance(reading.trace, LoadTrace)
    assert reading.trace.tokens.tolist() == [[[6, 12]]]
    assert "counts of 3 slots are folded to 2 experts" in reading.notes[0]


def test_loads_by_expert_are_not_folded(tmp_path: Path) -> None:
    """A trace of this project has them so, and says that the placement changes nothing."""
    path = tmp_path / "t.json"
    path.write_text('{"loads": [[5, 6]]}')
    reading = read_trace(str(path), recorded_under=LIVE)
    assert isinstance(reading.trace, LoadTrace)
    assert reading.trace.tokens.tolist() == [[[5, 6]]]
    assert "by expert already" in reading.notes[0]


def test_a_placement_of_other_experts_is_refused(tmp_path: Path) -> None:
    """Also where counts are not by slot, so that nothing is folded."""
    path = tmp_path / "t.json"
    path.write_text('{"loads": [[5, 6, 7]]}')
    with pytest.raises(RefusedError, match=r"counts of 3 experts, and the placement .* has 2"):
        read_trace(str(path), recorded_under=LIVE)

"""Arrays of DeepSeek's balancer: phy2log, log2phy, logcnt."""

import io
from pathlib import Path

import numpy as np
import pytest

from eplb.formats.maps import export_plan, import_map
from eplb.placement import Placement
from eplb.plan import Plan

ROWS = [[0, 2, 1, 0], [1, 0, 2, 1]]
PLAN = Plan(Placement(np.array(ROWS), 3, 2), np.array([3, 4]))
LOG2PHY = [[[0, 3], [2, -1], [1, -1]], [[1, -1], [0, 3], [2, -1]]]
LOGCNT = [[2, 1, 1], [1, 2, 1]]


def test_the_arrays_of_a_small_map() -> None:
    """All int64, −1 where an expert has fewer copies; no server reads it, so no flags."""
    export = export_plan(PLAN, "deepseek", "m.npz")
    with np.load(io.BytesIO(export.data)) as arrays:
        assert {key: arrays[key].tolist() for key in arrays.files} == {
            "phy2log": ROWS, "log2phy": LOG2PHY, "logcnt": LOGCNT, "layer_ids": [3, 4],
        }  # fmt: skip
        assert all(arrays[key].dtype == np.int64 for key in arrays.files)
    assert export.flags == ()
    assert export.data == export_plan(PLAN, "deepseek", "other.npz").data


def test_torch_files_hold_the_same(tmp_path: Path) -> None:
    """Tensors only."""
    import torch

    path = tmp_path / "m.pt"
    path.write_bytes(export_plan(PLAN, "deepseek", str(path)).data)
    loaded = torch.load(path, weights_only=True)
    assert loaded["phy2log"].tolist() == ROWS and loaded["logcnt"].dtype == torch.int64
    plan, notes = import_map(str(path), "deepseek", 2)
    assert (plan.layer_ids.tolist(), notes) == ([3, 4], ())


@pytest.mark.parametrize("form", ["tuple", "npy", "other order of copies"])
def test_what_its_function_returns_is_read(form: str, tmp_path: Path) -> None:
    """The tuple as torch saves it, phy2log alone, and copies in replica order."""
    import torch

    path = tmp_path / "m.bin"
    log2phy = np.array(LOG2PHY)
    if form == "other order of copies":
        log2phy[0, 0] = [3, 0]
    if form == "npy":
        np.save(tmp_path / "m.npy", np.array(ROWS))
        path = tmp_path / "m.npy"
    else:
        torch.save(tuple(torch.tensor(a) for a in (ROWS, log2phy.tolist(), LOGCNT)), path)
    plan, notes = import_map(str(path), "deepseek", 2, layer_ids=[3, 4])
    assert plan.placement.physical_to_logical.tolist() == ROWS
    assert (plan.layer_ids.tolist(), notes) == ([3, 4], ())

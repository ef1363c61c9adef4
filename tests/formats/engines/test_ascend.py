"""vllm-ascend's expert map: lists by layer and device, gone through by position."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import RefusedError
from eplb.formats.maps import export_plan, import_map
from eplb.model import Model
from eplb.placement import Placement
from eplb.plan import Plan

ROWS = [[0, 1, 2, 5, 3, 4, 5, 0], [4, 1, 0, 3, 2, 3, 5, 4]]
PLAN = Plan(Placement(np.array(ROWS), 6, 2), np.array([3, 4]))
MODEL = Model("deepseek_v3", 5, (3, 4), 6)
TEXT = b"""{"moe_layer_count": 2,
 "layer_list": [
  {"layer_id": 0, "device_count": 2, "device_list": [
    {"device_id": 0, "device_expert": [0, 1, 2, 5]},
    {"device_id": 1, "device_expert": [3, 4, 5, 0]}]},
  {"layer_id": 1, "device_count": 2, "device_list": [
    {"device_id": 0, "device_expert": [4, 1, 0, 3]},
    {"device_id": 1, "device_expert": [2, 3, 5, 4]}]}]}
"""


def test_the_bytes_of_a_small_map() -> None:
    """A device a line; the change of meaning at 0.24 is said; the flags name the file."""
    export = export_plan(PLAN, "vllm-ascend", "m.json", MODEL)
    assert export.data == TEXT
    assert [note.split()[0] for note in export.notes] == ["EP208"]
    flags = shlex.split(" ".join(export.flags))
    assert flags[:2] == ["--enable-expert-parallel", "--additional-config"]
    assert json.loads(flags[2]) == {
        "eplb_config": {"expert_map_path": "m.json", "num_redundant_experts": 2}
    }


def test_devices_are_known_from_the_file(tmp_path: Path) -> None:
    """--gpus must agree where it is given."""
    path = tmp_path / "m.json"
    path.write_bytes(TEXT)
    plan = import_map(str(path), "vllm-ascend", model=MODEL).plan
    assert (plan.placement.num_ranks, plan.layer_ids.tolist()) == (2, [3, 4])
    assert plan.placement.physical_to_logical.tolist() == ROWS
    assert import_map(str(path), "vllm-ascend", 2).plan.placement.num_ranks == 2
    with pytest.raises(RefusedError, match=r"m\.json: the file is for 2 GPUs and --gpus says 4"):
        import_map(str(path), "vllm-ascend", 4)


def test_numbers_off_position_are_said(tmp_path: Path) -> None:
    """Recorders count from 0; a file that numbers otherwise is read as the engine reads it."""
    content = json.loads(TEXT)
    content["layer_list"][0]["layer_id"] = 3
    content["layer_list"][1]["device_list"][0]["device_id"] = 1
    path = tmp_path / "m.json"
    path.write_text(json.dumps(content))
    plan, notes = import_map(str(path), "vllm-ascend", model=MODEL)
    assert plan.placement.physical_to_logical.tolist() == ROWS
    assert "layer_list[0] has layer_id 3" in notes[0] and "and 1 more" in notes[1]

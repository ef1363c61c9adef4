"""vLLM's proposed files: a list of lists, and a mapping record."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import InputError, RefusedError
from eplb.formats.maps import export_plan, import_map
from eplb.model import Model
from eplb.placement import Placement, linear
from eplb.plan import Plan

ROWS = [[0, 2, 1, 0], [1, 0, 2, 1]]
PLAN = Plan(Placement(np.array(ROWS), 3, 2), np.array([3, 4]))
LIST = b"[\n[0,2,1,0],\n[1,0,2,1]\n]\n"
RECORD = (
    b'{"record_type":"eplb_initial_mapping","version":1,"num_redundant_experts":1,"num_slots":4,'
    b'"initial_global_assignments":{"0":[0,2,1,0],"1":[1,0,2,1]}}\n'
)


@pytest.mark.parametrize(
    ("name", "data", "pull"), [("m.json", LIST, "49572"), ("m.jsonl", RECORD, "41141")]
)
def test_the_bytes_of_small_maps(name: str, data: bytes, pull: str, tmp_path: Path) -> None:
    """Rows by ordinal; labelled as proposed; the way that 0.33 has is named."""
    export = export_plan(PLAN, "vllm", name)
    assert export.data == data
    proposed = next(n for n in export.notes if n.startswith("EP209"))
    assert pull in proposed and "not merged as of 0.33" in proposed
    assert "EPLB_VLLM_PLAN" in proposed and "vllm.general_plugins" in proposed
    flags = shlex.split(" ".join(export.flags))
    assert flags[:3] == ["--enable-expert-parallel", "--enable-eplb", "--eplb-config"]
    assert json.loads(flags[3]) == {"num_redundant_experts": 1}
    path = tmp_path / name
    path.write_bytes(data)
    plan, notes = import_map(str(path), "vllm", 2)
    assert plan.placement.physical_to_logical.tolist() == ROWS
    assert plan.layer_ids.tolist() == [0, 1]
    assert notes[0].startswith("EP206") and "numbered from 0" in notes[0]
    assert import_map(str(path), "vllm", 2, layer_ids=[3, 4]).plan.layer_ids.tolist() == [3, 4]


def test_a_mapping_record_among_others_is_found(tmp_path: Path) -> None:
    """Recorders append to one file; two mappings are one too many."""
    load = b'{"record_type":"eplb_load_stats","version":1,"step":1}\n'
    path = tmp_path / "m.jsonl"
    path.write_bytes(load + RECORD)
    assert import_map(str(path), "vllm", 2).plan.placement.num_slots == 4
    path.write_bytes(RECORD + RECORD)
    with pytest.raises(InputError, match="2 records of type"):
        import_map(str(path), "vllm", 2)


def test_more_redundant_experts_than_fit_are_refused() -> None:
    """Its tables have 1,024 places for the copies of an expert; 1,023 redundant ones are taken."""
    assert export_plan(Plan(linear(1, 1, 1024, 1024), np.array([0])), "vllm", "m.json")
    with pytest.raises(RefusedError, match=r"EP205.*1024 redundant experts.*--redundant 1023"):
        export_plan(Plan(linear(1, 1, 1025, 1025), np.array([0])), "vllm", "m.json")


def test_rows_of_a_draft_model_are_left_out() -> None:
    """It is a model of its own to vLLM."""
    model = Model("deepseek_v3", 5, (3, 4), 3, mtp_layer_ids=(5,))
    mtp = Plan(Placement(np.array([*ROWS, ROWS[0]]), 3, 2), np.array([3, 4, 5]))
    export = export_plan(mtp, "vllm", "m.json", model)
    assert export.data == LIST
    assert export.notes[0].startswith("EP207")


def test_native_classes_without_balancer_are_named() -> None:
    """A note."""
    plan = Plan(PLAN.placement, PLAN.layer_ids, provenance={"model": "gpt-oss"})
    assert any(n.startswith("EP210") for n in export_plan(plan, "vllm", "m.json").notes)

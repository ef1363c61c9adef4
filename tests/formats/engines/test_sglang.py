"""SGLang's expert location: every decoder layer a row, one key, JSON or torch."""

import json
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import InputError, RefusedError
from eplb.formats.maps import export_plan, import_map
from eplb.model import Model
from eplb.placement import Placement
from eplb.plan import Plan

# Layer 0 of 3 is dense; 6 experts in 8 slots on 4 GPUs.
ROWS = [[5, 2, 0, 3, 4, 1, 5, 2], [1, 4, 3, 0, 5, 2, 4, 1]]
PLAN = Plan(Placement(np.array(ROWS), 6, 4), np.array([1, 2]))
MODEL = Model("deepseek_v3", 3, (1, 2), 6)
TEXT = b"""{"physical_to_logical_map": [
[0,1,2,3,4,5,0,1],
[5,2,0,3,4,1,5,2],
[1,4,3,0,5,2,4,1]
]}
"""


def test_the_bytes_of_a_small_map() -> None:
    """Dense rows hold slot p → p mod E; the flags say the same sizes; nothing else is a key."""
    export = export_plan(PLAN, "sglang", "a map.json", MODEL)
    assert export.data == TEXT
    assert export.flags == (
        "--init-expert-location 'a map.json'", "--ep-size 4", "--ep-num-redundant-experts 2"
    )  # fmt: skip
    assert export.notes == (
        "without --enable-eplb the placement stays; with it SGLang starts from it and rebalances",
    )


def test_torch_files_hold_one_int64_tensor(tmp_path: Path) -> None:
    """Loaded as SGLang does it, tensors only; the same bytes every time."""
    import torch

    path = tmp_path / "map.pt"
    path.write_bytes(export_plan(PLAN, "sglang", str(path), MODEL).data)
    loaded = torch.load(path, weights_only=True, map_location="cpu")
    assert list(loaded) == ["physical_to_logical_map"]
    assert loaded["physical_to_logical_map"].dtype == torch.int64
    assert loaded["physical_to_logical_map"].tolist() == json.loads(TEXT)["physical_to_logical_map"]
    assert path.read_bytes() == export_plan(PLAN, "sglang", str(path), MODEL).data
    back = import_map(str(path), "sglang", 4, model=MODEL).plan
    assert back.placement.physical_to_logical.tolist() == ROWS


def test_the_number_of_layers_is_stated_or_assumed() -> None:
    """From the model, else from the plan's provenance, else from its last layer, which is said."""
    stated = Plan(PLAN.placement, PLAN.layer_ids, provenance={"decoder_layers": 5})
    export = export_plan(stated, "sglang", "m.json")
    assert len(json.loads(export.data)["physical_to_logical_map"]) == 5
    assumed = export_plan(PLAN, "sglang", "m.json")
    assert assumed.data == TEXT
    assert any(n.startswith("EP206") and "3 decoder layers are assumed" in n for n in assumed.notes)


def test_layers_come_in_their_order() -> None:
    """Whatever order the plan has them in."""
    turned = Plan(Placement(np.array(ROWS[::-1]), 6, 4), np.array([2, 1]))
    assert export_plan(turned, "sglang", "m.json").data == TEXT


def test_the_layer_that_drafts_is_left_out() -> None:
    """SGLang keeps it as it is; the note has the rule's id."""
    mtp = Plan(Placement(np.array([*ROWS, ROWS[0]]), 6, 4), np.array([1, 2, 3]))
    model = Model("deepseek_v3", 3, (1, 2), 6, mtp_layer_ids=(3,))
    for given in (mtp, PLAN):
        export = export_plan(given, "sglang", "m.json", model)
        assert export.data == TEXT
        assert export.notes[0].startswith("EP207") and "layer 3 has no row" in export.notes[0]


def test_classes_without_the_hook_are_named() -> None:
    """A note, as the Transformers backend has it."""
    plan = Plan(PLAN.placement, PLAN.layer_ids, provenance={"model": "mixtral"})
    assert any(n.startswith("EP210") for n in export_plan(plan, "sglang", "m.json").notes)
    assert not any(n.startswith("EP210") for n in export_plan(PLAN, "sglang", "m.json").notes)


def test_other_endings_are_refused() -> None:
    """SGLang would take the name for the text of a map."""
    with pytest.raises(InputError, match=r"\.json or \.pt is expected"):
        export_plan(PLAN, "sglang", "map.txt")


def test_dense_rows_are_kept_unless_known(tmp_path: Path) -> None:
    """A model or a list of layers drops them; without, they are kept and it is said which."""
    path = tmp_path / "m.json"
    path.write_bytes(TEXT)
    whole = import_map(str(path), "sglang", 4)
    assert whole.plan.layer_ids.tolist() == [0, 1, 2]
    assert "EP206" in whole.notes[0] and "layer 0 holds the row" in whole.notes[0]
    for known in ({"model": MODEL}, {"layer_ids": [1, 2]}):
        plan, notes = import_map(str(path), "sglang", 4, **known)  # type: ignore[arg-type]
        assert (plan.layer_ids.tolist(), notes) == ([1, 2], ())
        assert plan.placement.physical_to_logical.tolist() == ROWS
    with pytest.raises(RefusedError, match=r"EP203.*the file has 3 layers and the model .* 4"):
        import_map(str(path), "sglang", 4, model=Model("m", 4, (1, 2, 3), 6))

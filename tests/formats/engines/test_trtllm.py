"""TensorRT-LLM's load balancer: YAML with layers by number."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from eplb.errors import RefusedError
from eplb.formats.engines.trtllm import default_row
from eplb.formats.maps import export_plan, import_map
from eplb.model import Model
from eplb.placement import Placement, linear
from eplb.plan import Plan

ROWS = [[0, 4, 1, 5, 2, 0, 3, 1], [5, 2, 0, 3, 4, 1, 2, 5]]
PLAN = Plan(Placement(np.array(ROWS), 6, 4), np.array([3, 4]))
MODEL = Model("deepseek_v3", 5, (3, 4), 6)
TEXT = b"""initial_global_assignments:
  3: [0, 4, 1, 5, 2, 0, 3, 1]
  4: [5, 2, 0, 3, 4, 1, 2, 5]
layer_updates_per_iter: 0
num_slots: 8
"""


def test_the_bytes_of_a_small_map() -> None:
    """Integer keys, lists in a line, keys sorted, no ep_size; the settings name the file."""
    export = export_plan(PLAN, "trtllm", "eplb.yaml", MODEL)
    assert (export.data, export.notes) == (TEXT, ())
    assert yaml.safe_load("\n".join(export.flags)) == {
        "enable_attention_dp": True,
        "moe_config": {"backend": "WIDEEP", "load_balancer": "eplb.yaml"},
        "moe_expert_parallel_size": 4,
    }


def test_the_text_is_what_pyyaml_writes() -> None:
    """Word for word as the engine's own script dumps it, and it loads with keys that are ints."""
    plan = Plan(linear(12, 30, 40, 8), np.arange(3, 15))
    data = export_plan(plan, "trtllm", "m.yml").data
    content = yaml.safe_load(data)
    layers = content["initial_global_assignments"]
    assert all(type(layer) is int and set(row) == set(range(30)) for layer, row in layers.items())
    infinite = float("inf")
    assert data.decode() == yaml.safe_dump(content, default_flow_style=None, width=infinite)


def test_a_layer_that_drafts_gets_a_key() -> None:
    """Without one the engine stops; a planned row is used, else its own default, and it is said."""
    model = Model("deepseek_v3", 5, (3, 4), 6, mtp_layer_ids=(5,))
    export = export_plan(PLAN, "trtllm", "m.yaml", model)
    layers = yaml.safe_load(export.data)["initial_global_assignments"]
    assert layers[5] == [0, 1, 1, 2, 3, 4, 4, 5]
    assert export.notes[0].startswith("EP207") and "lacks layer 5" in export.notes[0]
    planned = Plan(Placement(np.array([*ROWS, ROWS[0]]), 6, 4), np.array([3, 4, 5]))
    export = export_plan(planned, "trtllm", "m.yaml", model)
    layers = yaml.safe_load(export.data)["initial_global_assignments"]
    assert (layers[5], export.notes) == (ROWS[0], ())


@pytest.mark.parametrize(("slots", "experts", "ranks"), [(8, 6, 4), (288, 256, 32), (6, 6, 3)])
def test_default_rows_hold_every_expert(slots: int, experts: int, ranks: int) -> None:
    """Slot i of GPU g holds (g·E // R + i) mod E."""
    row, own = default_row(slots, experts, ranks), slots // ranks
    assert set(row.tolist()) == set(range(experts))
    for rank in range(ranks):
        for i in range(own):
            assert row[rank * own + i] == (rank * experts // ranks + i) % experts


def test_missing_layers_are_named() -> None:
    """The engine would stop at them."""
    model = Model("deepseek_v3", 8, (3, 4, 5, 6, 7), 6)
    with pytest.raises(RefusedError, match=r"EP203 .*lacks layer 5-7 of the 5 with experts"):
        export_plan(PLAN, "trtllm", "m.yaml", model)


def test_same_gpu_copies_are_allowed_and_said() -> None:
    """The engine serves them; a slot is wasted."""
    twice = Plan(Placement(np.array([[0, 0, 1, 2]]), 3, 2), np.array([7]))
    notes = export_plan(twice, "trtllm", "m.yaml").notes
    assert any(n.startswith("EP201") and "in layer 7 GPU 0 holds expert 0" in n for n in notes)


def test_architectures_off_the_list_are_named() -> None:
    """A note; known ones have none."""
    other = Model("glm4_moe", 5, (3, 4), 6)
    assert export_plan(PLAN, "trtllm", "m.yaml", other).notes[0].startswith("EP210")


def test_files_of_its_own_scripts_are_read(tmp_path: Path) -> None:
    """Those have ep_size, which current versions refuse: said, and held against --gpus."""
    path = tmp_path / "m.yaml"
    path.write_bytes(TEXT + b"ep_size: 4\n")
    plan, notes = import_map(str(path), "trtllm")
    assert (plan.placement.num_ranks, plan.layer_ids.tolist()) == (4, [3, 4])
    assert plan.placement.physical_to_logical.tolist() == ROWS
    assert "ep_size" in notes[0]
    with pytest.raises(RefusedError, match="for 4 GPUs and --gpus says 2"):
        import_map(str(path), "trtllm", 2)


def test_any_style_of_yaml_is_read(tmp_path: Path) -> None:
    """Flow style begins as JSON does and is none."""
    path = tmp_path / "m.yaml"
    path.write_text("{num_slots: 8, initial_global_assignments: {3: [0, 4, 1, 5, 2, 0, 3, 1]}}")
    assert import_map(str(path), "trtllm", 4).plan.layer_ids.tolist() == [3]

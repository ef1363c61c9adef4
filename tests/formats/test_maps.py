"""The door to engines' maps: there and back again, and what imports make of models and layers."""

import tempfile
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eplb.errors import InputError, RefusedError
from eplb.formats.maps import ENGINES, export_plan, import_map
from eplb.formats.plans import read_plan, write_plan
from eplb.model import Model
from eplb.placement import Placement
from eplb.plan import Plan

from ..strategies import placements

FORMS = [(engine, ending) for engine, module in ENGINES.items() for ending in module.ENDINGS]
ROWS = [[0, 2, 1, 0], [1, 0, 2, 1]]


def _written(folder: str, plan: Plan, engine: str, ending: str, model: Model | None = None) -> str:
    path = Path(folder) / f"map{ending}"
    path.write_bytes(export_plan(plan, engine, str(path), model).data)
    return str(path)


@settings(max_examples=40, deadline=None)
@given(placements(), st.sampled_from(FORMS), st.randoms(use_true_random=False), st.booleans())
def test_what_is_exported_is_imported(
    placement: Placement, form: tuple[str, str], random: Random, known: bool
) -> None:
    """Every engine's every form gives the same slots and layers back, with a model or a list of
    layers to say which they are; only same-GPU copies are kept from two engines."""
    layer_ids = sorted(random.sample(range(12), placement.num_layers))
    plan = Plan(placement, np.array(layer_ids))
    model = Model("m", 12, tuple(layer_ids), placement.num_logical_experts) if known else None
    engine, ending = form
    with tempfile.TemporaryDirectory() as folder:
        if engine in ("sglang", "vllm-ascend") and placement.duplicates():
            with pytest.raises(RefusedError, match="EP201"):
                _written(folder, plan, engine, ending, model)
            return
        path = _written(folder, plan, engine, ending, model)
        back = import_map(
            path, engine, placement.num_ranks, placement.num_nodes, model,
            None if known else layer_ids,
        )  # fmt: skip
        again = export_plan(back.plan, engine, path, model)
        assert again.data == Path(path).read_bytes()
    theirs = back.plan.placement
    assert np.array_equal(theirs.physical_to_logical, placement.physical_to_logical)
    assert back.plan.layer_ids.tolist() == layer_ids
    assert (theirs.num_ranks, theirs.num_nodes, theirs.num_logical_experts) == (
        placement.num_ranks, placement.num_nodes, placement.num_logical_experts,
    )  # fmt: skip
    assert any(note.startswith("EP201") for note in back.notes) == bool(placement.duplicates())


def test_an_imported_plan_is_a_plan_file(tmp_path: Path) -> None:
    """A placement, its layers and where it is from; nothing is claimed of loads."""
    plan = Plan(Placement(np.array(ROWS), 3, 2), np.array([3, 4]))
    path = _written(str(tmp_path), plan, "vllm", ".json")
    model = Model("m", 5, (3, 4), 3)
    imported = import_map(path, "vllm", 2, model=model).plan
    assert imported.peak_load is None and imported.mean_load is None and not imported.summary
    facts = {key: imported.provenance[key] for key in ("imported_from", "model", "decoder_layers")}
    assert facts == {"imported_from": "vllm", "model": "m", "decoder_layers": 5}
    write_plan(imported, str(tmp_path / "plan.json"))
    assert read_plan(str(tmp_path / "plan.json")).layer_ids.tolist() == [3, 4]


def test_layers_and_models_must_fit(tmp_path: Path) -> None:
    """By position as many as rows, by number those that are there, in either case the model's."""
    plan = Plan(Placement(np.array(ROWS), 3, 2), np.array([3, 4]))
    rows = _written(str(tmp_path), plan, "vllm", ".json")
    keyed = _written(str(tmp_path), plan, "trtllm", ".yaml")
    with pytest.raises(InputError, match="2 rows and --layers names 3"):
        import_map(rows, "vllm", 2, layer_ids=[3, 4, 5])
    with pytest.raises(InputError, match="no layer 5; it has 3-4"):
        import_map(keyed, "trtllm", 2, layer_ids=[3, 5])
    assert import_map(keyed, "trtllm", 2, layer_ids=[4]).plan.layer_ids.tolist() == [4]
    other = Model("other", 9, (6, 7, 8), 3)
    for path, engine in ((rows, "vllm"), (keyed, "trtllm")):
        with pytest.raises(RefusedError, match=r"EP203.*\(other\) 3 layers with experts, 6-8"):
            import_map(path, engine, 2, model=other)
        with pytest.raises(RefusedError, match=r"EP203.*layer 3-4 has no experts"):
            import_map(path, engine, 2, model=other, layer_ids=[3, 4])
    with pytest.raises(RefusedError, match=r"EP204.*experts 0 to 2 and the model .* 4"):
        import_map(rows, "vllm", 2, model=Model("m", 5, (3, 4), 4))
    mtp = Model("m", 4, (3,), 3, mtp_layer_ids=(4,))
    assert import_map(rows, "vllm", 2, model=mtp).plan.layer_ids.tolist() == [3, 4]


@pytest.mark.parametrize(("engine", "ending"), FORMS)
def test_a_file_of_another_engine_is_named(engine: str, ending: str, tmp_path: Path) -> None:
    """Whoever mistakes one engine's file for another's is told whose it is."""
    path = _written(str(tmp_path), Plan(Placement(np.array(ROWS), 3, 2), [3, 4]), engine, ending)
    for other in set(ENGINES) - {engine}:
        with pytest.raises(InputError, match=f"it is a file for {engine}: --from {engine}$"):
            import_map(path, other, 2)


def test_same_gpu_copies_are_imported_and_said(tmp_path: Path) -> None:
    """The file is what runs, whether it is good or not."""
    path = tmp_path / "m.json"
    path.write_text("[[0, 0, 1, 2]]")
    plan, notes = import_map(str(path), "vllm", 2, layer_ids=[7])
    assert len(plan.placement.duplicates()) == 1
    assert "EP201" in notes[0] and "in layer 7 GPU 0 holds expert 0" in notes[0]

"""Load statistics that vLLM may write while it serves."""

import json
from pathlib import Path
from typing import Any

import pytest

from eplb.errors import InputError, RefusedError
from eplb.formats.recorders import vllm
from eplb.formats.source import Hints, Source
from eplb.model import Model
from eplb.trace import LoadTrace

MODEL = Model("tiny", num_layers=3, moe_layer_ids=(1, 2), num_experts=3)
HINTS = Hints(model=MODEL)


def record(**changes: Any) -> dict[str, Any]:
    """Two layers of three experts in four slots on two ranks; keys of None are left out."""
    values = {
        "record_type": "eplb_load_stats",
        "version": 1,
        "step": 100,
        "num_ranks": 2,
        "expert_load": [[10, 1, 5, 2], [2, 8, 1, 3]],
        "p2l_map": [[0, 1, 2, 0], [1, 1, 2, 0]],
    } | changes
    return {key: value for key, value in values.items() if value is not None}


def read(path: Path, *records: object, hints: Hints = HINTS) -> tuple[LoadTrace, list[str]]:
    """What the reader makes of JSON lines."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    source = Source(str(path))
    assert vllm.detect(source)
    return vllm.read(source, hints)


def test_slots_are_folded_under_the_map_of_their_record(tmp_path: Path) -> None:
    """Copies of an expert add up, and each record has a map of its own."""
    later = record(step=200, p2l_map=[[2, 1, 0, 0], [0, 1, 2, 0]])
    trace, notes = read(tmp_path / "s.jsonl", record(), later)
    assert trace.tokens.tolist() == [[[12, 1, 5], [3, 10, 1]], [[7, 1, 10], [5, 8, 1]]]
    assert (trace.window_steps, trace.layer_ids.tolist(), notes) == (100, [0, 1], [])


def test_one_record_is_one_window_of_unknown_length(tmp_path: Path) -> None:
    """One line alone is JSON as well; without a model, rows are said to be ordinals."""
    trace, notes = read(tmp_path / "s.jsonl", record(), hints=Hints())
    assert (trace.tokens.shape, trace.window_steps) == ((1, 2, 3), None)
    assert notes == [
        "rows are the layers with experts in their order, 0 to 1: --model gives them the model's"
        " numbers"
    ]


def test_spare_slots_hold_nothing(tmp_path: Path) -> None:
    """A slot of −1 without load is no expert."""
    spare = record(p2l_map=[[0, 1, 2, -1], [1, 0, 2, -1]], expert_load=[[1, 2, 3, 0]] * 2)
    assert read(tmp_path / "s.jsonl", spare)[0].tokens.tolist() == [[[1, 2, 3], [2, 1, 3]]]


def test_uneven_steps_and_unknown_keys_are_noted(tmp_path: Path) -> None:
    """Windows are of different lengths then; a key of a later version is left aside."""
    records = [record(step=step, colour="red") for step in (1, 2, 4)]
    trace, notes = read(tmp_path / "s.jsonl", *records)
    assert trace.window_steps is None
    assert notes[0] == "unknown key 'colour' was left aside"
    assert "not equally many steps apart" in notes[1]


MAPPING = {
    "record_type": "eplb_initial_mapping",
    "version": 1,
    "num_redundant_experts": 1,
    "num_slots": 4,
    "initial_global_assignments": {"0": [0, 1, 2, 0], "1": [1, 1, 2, 0]},
}
HOSTILE: dict[str, tuple[list[object], Hints, str]] = {
    "a placement": ([MAPPING], HINTS, "a placement.*eplb import --from vllm"),
    "a placement below": ([record(), MAPPING], HINTS, "line 2 is a placement"),
    "a foreign line": ([record(), {"a": 1}], HINTS, "line 2 is no load record: its keys are 'a'"),
    "a list": ([record(), [1]], HINTS, "no load record: its keys are no object"),
    "a later version": ([record(version=2)], HINTS, "version 2.*reads version 1"),
    "no version": ([record(version=None)], HINTS, "version None"),
    "no map": ([record(p2l_map=None)], HINTS, "line 1 has no 'p2l_map'; its keys are 'record_ty"),
    "no step": ([record(step=None)], HINTS, "has no 'step'"),
    "a step of text": ([record(step="1")], HINTS, "'step' is '1'"),
    "a negative step": ([record(step=-1)], HINTS, "'step' is -1"),
    "steps that go backwards": ([record(), record(step=99)], HINTS, "line 2: step 99 follows.*100"),
    "a step twice": ([record(), record()], HINTS, "step 100 follows step 100"),
    "no rank": ([record(num_ranks=0)], HINTS, "'num_ranks' is 0"),
    "ranks that do not divide": ([record(num_ranks=3)], HINTS, "4 slots do not divide over 3"),
    "ragged loads": ([record(expert_load=[[1, 2], [3]])], HINTS, r"expert_load\[1\] has 1 entries"),
    "fewer loads": ([record(expert_load=[[1, 2, 3]] * 2)], HINTS, "2 layers × 3 slots.*2 × 4"),
    "loads by step": ([record(expert_load=[[[1]]])], HINTS, "expert_load is nested 3 deep"),
    "loads of text": ([record(expert_load=[["a"]])], HINTS, 'is "a"; a number is expected'),
    "no list": ([record(expert_load=7)], HINTS, "expert_load is empty"),
    "negative load": (
        [record(expert_load=[[1, 2, 3, 4], [1, -2, 3, 4]])], HINTS, r"load\[1\]\[1\] is -2",
    ),
    "fractional experts": ([record(p2l_map=[[0, 1.5, 2, 0]] * 2)], HINTS, "holds fractions"),
    "an expert above E": (
        [record(), record(step=200, p2l_map=[[0, 1, 2, 3]] * 2)], HINTS, r"\[0\]\[3\] is expert 3"
    ),
    "an expert below −1": ([record(p2l_map=[[0, 1, 2, -2]] * 2)], HINTS, "is expert -2"),
    "a spare slot with load": (
        [record(p2l_map=[[0, 1, 2, -1]] * 2)], HINTS, "slot 3 of row 0 holds no expert and has .* 2"
    ),
    "an expert nowhere": (
        [record(p2l_map=[[0, 1, 2, 0], [0, 2, 2, 0]])], HINTS, "expert 1 has no slot in row 1"
    ),
    "an expert that fills memory": (
        [record(p2l_map=[[0, 1, 2, 2**40]] * 2)], Hints(), "1099511627777 experts and 4 slots",
    ),
    "another model's layers": (
        [record(), record(step=200, expert_load=[[1, 2, 3, 4]], p2l_map=[[0, 1, 2, 0]])],
        HINTS,
        "1 layers and before 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_records_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so, with the line."""
    records, hints, message = HOSTILE[what]
    with pytest.raises(InputError, match=message):
        read(tmp_path / "s.jsonl", *records, hints=hints)


@pytest.mark.parametrize("num_experts", [2, 4])
def test_recordings_of_another_model_are_refused(tmp_path: Path, num_experts: int) -> None:
    """Every map names every expert, so the number of experts is known."""
    with pytest.raises(RefusedError, match=f"has 3 experts a layer, and {num_experts} are"):
        read(tmp_path / "s.jsonl", record(), hints=Hints(num_experts=num_experts))


@pytest.mark.parametrize("content", ["{}", "[]", '{"record_type": "other"}', "3"])
def test_foreign_files_are_left_alone(tmp_path: Path, content: str) -> None:
    """They are for other readers."""
    path = tmp_path / "s.jsonl"
    path.write_text(content)
    assert not vllm.detect(Source(str(path)))

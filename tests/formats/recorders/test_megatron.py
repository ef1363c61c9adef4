"""Tokens per expert that Megatron-LM logs."""

import json
from pathlib import Path
from typing import Any

import pytest

from eplb.errors import InputError
from eplb.formats.recorders import megatron
from eplb.formats.source import Hints, Source
from eplb.model import Model
from eplb.trace import LoadTrace

MODEL = Model("tiny", num_layers=3, moe_layer_ids=(1, 2), num_experts=4)
FOUR, TWO = Hints(num_experts=4), Hints(num_experts=2)


def line(iteration: int, layer: int, *micro_batches: list[int], **more: Any) -> dict[str, Any]:
    """A line as Megatron-LM writes it."""
    return {"iter": iteration, "block": "decoder", "layer": layer, "tpe": [*micro_batches]} | more


def folder(path: Path, *ranks: list[object]) -> str:
    """A folder with a file for each rank."""
    path.mkdir(exist_ok=True)
    for number, records in enumerate(ranks):
        text = "".join(json.dumps(record) + "\n" for record in records)
        (path / f"rank{number}.jsonl").write_text(text)
    return str(path)


def read(path: str, hints: Hints = FOUR) -> tuple[LoadTrace, list[str]]:
    """What the reader makes of it."""
    source = Source(path)
    assert megatron.detect(source)
    return megatron.read(source, hints)


def test_ranks_hold_shards_of_the_experts(tmp_path: Path) -> None:
    """Micro-batches add up; two ranks after another hold all experts, and the next two are the
    same experts for other data."""
    path = folder(
        tmp_path,
        [line(10, 1, [1, 2], [10, 20]), line(20, 1, [1, 1])],
        [line(10, 1, [3, 4]), line(20, 1, [2, 2])],
        [line(10, 1, [100, 0]), line(20, 1, [3, 3])],
        [line(10, 1, [0, 100]), line(20, 1, [4, 4])],
    )
    trace, notes = read(path)
    assert trace.tokens.tolist() == [[[111, 22, 3, 104]], [[4, 4, 6, 6]]]
    assert (trace.layer_ids.tolist(), trace.window_steps) == ([1], 1)
    assert notes == [
        "ranks hold 2 of 4 experts each, 2 ranks after another all of them: as without tensor"
        " parallel experts and pipeline stages"
    ]


def test_ranks_with_all_experts_are_summed(tmp_path: Path) -> None:
    """Without expert parallelism every rank counts its own tokens."""
    path = folder(tmp_path, [line(1, 0, [1, 2])], [line(1, 0, [3, 4])])
    assert read(path, TWO)[0].tokens.tolist() == [[[4, 6]]]


def test_one_file_is_one_rank(tmp_path: Path) -> None:
    """Layers that predict several tokens are left aside."""
    mtp = {"iter": 1, "block": "mtp", "mtp_idx": 0, "layer": 0, "tpe": [[9, 9]]}
    path = folder(tmp_path, [line(1, 2, [5, 6]), line(1, 1, [1, 2]), mtp])
    trace, notes = read(f"{path}/rank0.jsonl", Hints())
    assert trace.tokens.tolist() == [[[1, 2], [5, 6]]]
    assert trace.layer_ids.tolist() == [1, 2]
    assert notes == [
        "layers that predict several tokens (MTP) are left aside",
        "2 experts are taken, as many as the one rank counts",
    ]


def test_like_names_are_understood(tmp_path: Path) -> None:
    """Layers counted from 1 are moved; counts of all layers at once are numbered from 0."""
    path = folder(tmp_path, [{"step": 3, "layer_number": 1, "tokens_per_expert": [1, 2]}])
    trace, notes = read(path, TWO)
    assert (trace.tokens.tolist(), trace.layer_ids.tolist()) == ([[[1, 2]]], [0])
    assert notes[0] == "'layer_number' counts layers from 1; layers are taken from 0"
    path = folder(tmp_path, [{"iteration": 3, "counts": [[1, 2], [3, 4]]}])
    trace, notes = read(path, TWO)
    assert (trace.tokens.tolist(), trace.layer_ids.tolist()) == ([[[1, 2], [3, 4]]], [0, 1])
    assert "from layer 0" in notes[0]


def test_iterations_become_windows_of_several(tmp_path: Path) -> None:
    """Only those that every rank has, and never very many."""
    path = folder(
        tmp_path,
        [line(i, 0, [i, 1]) for i in range(300)],
        [line(i, 0, [0, 0]) for i in range(299)],
    )
    trace, notes = read(path, TWO)
    assert (trace.num_windows, trace.window_steps) == (99, 3)
    assert trace.tokens[1, 0].tolist() == [3 + 4 + 5, 3]
    assert notes == [
        "1 iterations that not every rank logged are left aside",
        "every rank counts all 2 experts; ranks are summed",
        "299 logged iterations are summed into 99 windows of 3 steps; --window-steps chooses",
        "the last 2 of 299 logged iterations fill no window",
    ]
    assert read(path, Hints(num_experts=2, window_steps=100))[0].num_windows == 2


GOOD = line(1, 1, [1, 2])
HOSTILE: dict[str, tuple[list[list[object]], Hints, str]] = {
    "no experts known": ([[GOOD], [GOOD]], Hints(), "each of 2 ranks counts 2 experts.*--model"),
    "other keys": ([[GOOD, {"iter": 1, "layer": 2, "tokens": [1]}]], TWO,
                   "line 2 is not understood: its keys are 'iter', 'layer', 'tokens'.*tpe/"),
    "a number": ([[GOOD, 3]], TWO, "rank0.jsonl, line 2 is no object"),
    "no layer": ([[GOOD, {"iter": 1, "tpe": [1, 2]}]], TWO, "does not say of which layer"),
    "an iteration of text": ([[line("1", 1, [1, 2])]], TWO, "'iter' is '1'"),  # type: ignore[arg-type]
    "a layer of zero counted from 1": (
        [[{"iter": 1, "layer_number": 0, "tpe": [1]}]], TWO, "'layer_number' is 0"),
    "counts of text": ([[line(1, 1, ["a", 2])]], TWO, 'is "a"'),  # type: ignore[list-item]
    "no counts": ([[line(1, 1)]], TWO, "tpe is empty"),
    "a number for counts": ([[GOOD | {"tpe": 3}]], TWO, "tpe is empty"),
    "negative counts": ([[line(1, 1, [1, -2])]], TWO, r"tpe\[0\]\[1\] is -2"),
    "fractional counts": ([[line(1, 1, [1, 2.5])]], TWO, r"is 2.5; a count"),  # type: ignore[list-item]
    "deeper counts": ([[GOOD | {"tpe": [[[1, 2]]]}]], TWO, "nested 3 deep"),
    "ragged micro-batches": ([[line(1, 1, [1, 2], [3])]], TWO, r"tpe\[1\] has 1 entries"),
    "a line twice": ([[GOOD, GOOD]], TWO, "iteration 1 of layer 1 is there already.*resumed"),
    "layers of different width": ([[GOOD, line(1, 2, [1])]], TWO, "counts 1 experts in layer 2"),
    "a layer missing": ([[GOOD, line(1, 2, [1, 2]), line(2, 1, [1, 2])]], TWO,
                        "rank 0 has no line for layer 2 in iteration 2"),
    "other layers in another rank": ([[GOOD], [line(1, 2, [1, 2])]], TWO, "pipeline stages"),
    "no common iteration": ([[GOOD], [line(2, 1, [1, 2])]], TWO, "no iteration in common"),
    "ranks that do not fill": ([[GOOD]] * 3, FOUR, "3 ranks with 2 experts each.*4 experts"),
    "experts that do not divide": ([[GOOD]], Hints(num_experts=5), "do not hold 5 experts"),
    "stages of a model": ([[GOOD], [GOOD]], Hints(model=MODEL), "1 layers are logged and.* 2 with"),
    "experts that ranks share": ([[GOOD], [GOOD]], FOUR, "ranks 0 and 1 counted the same"),
    "only multi-token prediction": ([[GOOD | {"block": "mtp"}]], TWO, "no counts of decoder"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_logs_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so."""
    ranks, hints, message = HOSTILE[what]
    with pytest.raises(InputError, match=message):
        read(folder(tmp_path, *ranks), hints)


def test_a_missing_rank_is_named(tmp_path: Path) -> None:
    """Its experts would count nothing."""
    path = folder(tmp_path, [GOOD], [GOOD], [GOOD])
    (tmp_path / "rank1.jsonl").unlink()
    with pytest.raises(InputError, match=r"rank1.jsonl is missing and rank2.jsonl is there"):
        megatron.read(Source(path), TWO)


def test_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """Folders and files of others."""
    assert not megatron.detect(Source(str(tmp_path)))
    for name in ("rank0.safetensors", "rank0.jsonl"):
        (tmp_path / name).write_text('{"a": 1}\n{"a": 2}\n')
        assert not megatron.detect(Source(str(tmp_path)))
        assert not megatron.detect(Source(str(tmp_path / name)))

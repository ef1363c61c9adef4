"""TensorRT-LLM's expert statistics."""

import json
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eplb.errors import EplbError, InputError, RefusedError
from eplb.formats.recorders import trtllm
from eplb.formats.source import Hints, Source
from eplb.placement import Placement
from eplb.trace import LoadTrace


def _meta(folder: Path, **content: object) -> None:
    with open(folder / "meta_info.json", "w") as file:
        json.dump(content, file)


def _save(folder: Path, rank: object, records: dict[str, object], raw: str = "") -> None:
    tensors = {
        key: value if isinstance(value, torch.Tensor) else torch.tensor(value, dtype=torch.int64)
        for key, value in records.items()
    }
    save_file(tensors, str(folder / f"rank{rank}{raw}.safetensors"))


def _record(
    folder: Path, ids: dict[tuple[int, int, int], list[list[int]]], num_experts: int
) -> None:
    """Write ids [tokens, top_k] by rank, iteration and layer as the recorder does: counted."""
    records: dict[int, dict[str, object]] = {}
    top_k = 0
    for (rank, iteration, layer), chosen in ids.items():
        selected = torch.tensor(chosen)
        top_k = selected.size(-1)
        counts = torch.bincount(selected.flatten(), minlength=num_experts)
        records.setdefault(rank, {})[f"{iteration}_{layer}"] = counts.cpu()
    for rank, tensors in records.items():
        _save(folder, rank, tensors)
    _meta(folder, num_experts=num_experts, num_experts_per_token=top_k)


def _read(folder: Path, **hints: object) -> tuple[LoadTrace, list[str]]:
    source = Source(str(folder))
    assert trtllm.detect(source)
    return trtllm.read(source, Hints(**hints))  # type: ignore[arg-type]


def _sound(folder: Path) -> None:
    """Two ranks, iterations 100 and 101, layers 3 and 4, four experts."""
    for rank in range(2):
        _save(folder, rank, {f"{i}_{layer}": [rank, i - 100, layer, 0]
                             for i in (100, 101) for layer in (3, 4)})  # fmt: skip
    _meta(folder, num_experts=4, num_experts_per_token=2)


def test_ranks_are_added_up(tmp_path: Path) -> None:
    """The counts of one key over all ranks are its load; layers keep their own numbers."""
    ids = {
        (0, 100, 3): [[0, 1], [0, 2]],
        (0, 101, 3): [[1, 2], [1, 3]],
        (1, 100, 3): [[0, 3], [2, 3]],
        (1, 101, 3): [[0, 1], [0, 1]],
    }
    _record(tmp_path, ids, 4)
    trace, notes = _read(tmp_path)
    assert trace.tokens.tolist() == [[[3, 1, 2, 2]], [[2, 4, 1, 1]]]
    assert trace.layer_ids.tolist() == [3]
    assert (trace.top_k, trace.window_steps) == (2, 1)
    assert len(notes) == 1 and "4 counts a layer are taken for experts" in notes[0]


def test_layers_are_sorted_as_numbers_and_dense_ones_have_no_row(tmp_path: Path) -> None:
    """Layer 10 comes after layer 9, whatever the order of keys."""
    _save(tmp_path, 0, {"5_10": [1, 2], "5_9": [3, 4], "5_61": [5, 6]})
    _meta(tmp_path, num_experts=2, num_experts_per_token=1)
    trace, _ = _read(tmp_path)
    assert trace.layer_ids.tolist() == [9, 10, 61]
    assert trace.tokens.tolist() == [[[3, 4], [1, 2], [5, 6]]]


def test_iterations_are_summed_into_windows(tmp_path: Path) -> None:
    """Iterations in numerical order fill windows; what fills none is left aside."""
    _save(tmp_path, 0, {f"{i}_0": [i, 1] for i in range(8, 13)})
    _meta(tmp_path, num_experts=2, num_experts_per_token=1)
    trace, notes = _read(tmp_path, window_steps=2)
    assert trace.tokens.tolist() == [[[17, 2]], [[21, 2]]]
    assert trace.window_steps == 2
    assert any("the last 1 of 5 passes" in note for note in notes)
    with pytest.raises(InputError, match="window of 6 steps is longer"):
        _read(tmp_path, window_steps=6)


def test_many_iterations_become_few_windows(tmp_path: Path) -> None:
    """By default there are at most 128 windows."""
    _save(tmp_path, 0, {f"{i}_0": [1, 2] for i in range(300)})
    _meta(tmp_path, num_experts=2, num_experts_per_token=1)
    trace, notes = _read(tmp_path)
    assert (trace.num_windows, trace.window_steps) == (100, 3)
    assert trace.tokens.sum(axis=0).tolist() == [[300, 600]]
    assert "summed into 100 windows of 3" in notes[0]


def test_ranks_of_a_pipeline_hold_different_layers(tmp_path: Path) -> None:
    """The grid is over all ranks; a stage of dense layers leaves an empty file."""
    _save(tmp_path, 0, {})
    _save(tmp_path, 1, {"1_3": [1, 2], "2_3": [3, 4]})
    _save(tmp_path, 2, {"1_4": [5, 6], "2_4": [7, 8]})
    _meta(tmp_path, num_experts=2, num_experts_per_token=1)
    trace, notes = _read(tmp_path)
    assert trace.tokens.tolist() == [[[1, 2], [5, 6]], [[3, 4], [7, 8]]]
    assert len(notes) == 1


def test_variants_of_the_recorder(tmp_path: Path) -> None:
    """int32 counts and further keys of the meta are taken; files that are no counts are named."""
    _save(tmp_path, 0, {"1_3": torch.tensor([1, 2], dtype=torch.int32)})
    _save(tmp_path, 0, {"1_3": [[1], [0]]}, raw="_raw")
    (tmp_path / "rank0_numtokens.json").write_text('{"1_3": 3}')
    save_file({"1_3": torch.ones(2, 2)}, str(tmp_path / "cooccurrence_rank0.safetensors"))
    chosen = str(tmp_path / "token_selected_experts_rank0.safetensors")
    save_file({"1_3": torch.tensor([[1]])}, chosen)
    (tmp_path / "rank_0.pkl").write_bytes(pickle.dumps({(1, 3): [9, 9]}))
    (tmp_path / "README").write_text("of the operator")
    _meta(tmp_path, num_experts=2, num_experts_per_token=1, ep_size=1, experts_per_rank=2)
    trace, notes = _read(tmp_path)
    assert trace.tokens.tolist() == [[[1, 2]]]
    assert notes[0] == (
        "no counts, left aside: cooccurrence_rank0.safetensors, rank0_numtokens.json,"
        " rank0_raw.safetensors, rank_0.pkl and 1 more"
    )


def test_raw_ids_are_counted_where_a_rank_has_no_counts(tmp_path: Path) -> None:
    """Ids [tokens, top_k] are counted; −1 is none, and no tokens are no counts."""
    _save(tmp_path, 0, {"1_3": [4, 0, 0]})
    _save(tmp_path, 1, {"1_3": [[0, 1], [2, 1], [-1, -1]]}, raw="_raw")
    _save(tmp_path, 2, {"1_3": torch.zeros((0, 2), dtype=torch.int32)}, raw="_raw")
    _meta(tmp_path, num_experts=3, num_experts_per_token=2)
    trace, notes = _read(tmp_path)
    assert trace.tokens.tolist() == [[[5, 2, 1]]]
    assert notes[0] == (
        "ids of tokens instead of counts, counted here: rank1_raw.safetensors,"
        " rank2_raw.safetensors"
    )


def test_missing_iterations_are_said(tmp_path: Path) -> None:
    """Gaps in the numbers make no window and no error."""
    _save(tmp_path, 0, {f"{i}_0": [i, 0] for i in (1, 2, 4, 8)})
    _meta(tmp_path, num_experts=2, num_experts_per_token=1)
    trace, notes = _read(tmp_path)
    assert trace.tokens[:, 0, 0].tolist() == [1, 2, 4, 8]
    assert notes[0] == "missing iterations: 3, 5 to 7; windows are of those that are there"


def test_missing_ranks_are_said(tmp_path: Path) -> None:
    """A gap in the ranks, or a meta that speaks of more."""
    _sound(tmp_path)
    (tmp_path / "rank1.safetensors").rename(tmp_path / "rank2.safetensors")
    _meta(tmp_path, num_experts=4, num_experts_per_token=2, ep_size=4)
    _, notes = _read(tmp_path)
    assert notes[0] == "no file of rank 1: tokens counted there are missing"
    assert notes[1] == "meta_info.json says 4 ranks, and 2 left files"


def test_a_rank_with_holes_is_said(tmp_path: Path) -> None:
    """Another rank has the layer in that iteration, so the load is there, if less of it."""
    _sound(tmp_path)
    _save(tmp_path, 1, {"100_3": [1, 1, 1, 1], "100_4": [1, 1, 1, 1], "101_3": [1, 1, 1, 1]})
    _, notes = _read(tmp_path)
    assert notes[0].startswith("rank1.safetensors lacks 1 of 4 counts of its layers")


def test_equal_ranks_are_said(tmp_path: Path) -> None:
    """Without attention data parallelism each rank counts all tokens; a copy is told apart."""
    for rank in range(2):
        _save(tmp_path, rank, {"1_0": [3, 1]})
    _meta(tmp_path, num_experts=2, num_experts_per_token=1)
    trace, notes = _read(tmp_path)
    assert trace.tokens.tolist() == [[[6, 2]]]
    assert "every 2 ranks are the same" in notes[0] and "2 times the tokens" in notes[0]
    _save(tmp_path, 2, {"1_0": [5, 7]})
    assert "were their files copied" in _read(tmp_path)[1][0]


def _live(rows: list[list[int]], num_experts: int, **kwargs: object) -> Placement:
    return Placement(np.array(rows), num_experts, 2, **kwargs)  # type: ignore[arg-type]


def test_slots_are_folded_back(tmp_path: Path) -> None:
    """With the placement that was live, each expert has the counts of its slots, by layer."""
    _save(tmp_path, 0, {"1_3": [10, 20, 30, 40], "1_7": [1, 2, 3, 4]})
    _save(tmp_path, 1, {"1_3": [1, 0, 0, 0], "1_7": [0, 0, 0, 1]})
    _meta(tmp_path, num_experts=4, num_experts_per_token=2)
    live = _live([[0, 1, 2, 0], [2, 1, 0, 1]], 3)
    trace, notes = _read(tmp_path, recorded_under=live, num_experts=3)
    assert trace.tokens.tolist() == [[[51, 20, 30], [3, 7, 1]]]
    assert trace.layer_ids.tolist() == [3, 7]
    assert len(notes) == 1 and "4 slots are folded to 3 experts" in notes[0]


def test_slots_of_a_rank_out_of_service_hold_nothing(tmp_path: Path) -> None:
    """Zero counts of an excluded rank are no expert's; others show that the placement is wrong."""
    _save(tmp_path, 0, {"1_3": [10, 20, 0, 0]})
    _meta(tmp_path, num_experts=4, num_experts_per_token=1)
    live = _live([[1, 0, -1, -1]], 2, excluded_ranks=(1,))
    assert _read(tmp_path, recorded_under=live)[0].tokens.tolist() == [[[20, 10]]]
    _save(tmp_path, 0, {"1_3": [10, 20, 0, 1]})
    with pytest.raises(RefusedError, match="slot 3 has load in layer 3, and its rank is excluded"):
        _read(tmp_path, recorded_under=live)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({"num_experts": 3}, "4 counts a layer and the model has 3 experts: .*--recorded-under"),
        ({"num_experts": 5}, "the model has 5 experts; the recording is of another model"),
        (
            {"recorded_under": _live([[0, 1, 2, 0, 1, 2]] * 2, 3)},
            "4 counts a layer, and .* has 6 slots$",
        ),
        (
            {"recorded_under": _live([[0, 1, 2, 3, 1, 2]] * 2, 4)},
            "has 6 slots; that is the number of its experts: .* leave --recorded-under away",
        ),
        (
            {"recorded_under": _live([[0, 1, 2, 0]], 3)},
            "has 2 layers and the placement recorded under 1",
        ),
        (
            {"recorded_under": _live([[0, 1, 2, 0]] * 2, 3), "num_experts": 2},
            "is of 3 experts and the model has 2",
        ),
    ],
)
def test_slots_are_never_taken_for_experts(
    tmp_path: Path, hints: dict[str, object], message: str
) -> None:
    """Counts as many as neither the experts nor the slots are refused, with what would help."""
    _sound(tmp_path)
    with pytest.raises(EplbError, match=message):
        _read(tmp_path, **hints)


def test_other_folders_and_files_are_not_claimed(tmp_path: Path) -> None:
    """A checkpoint's folder, an empty one and other files belong to other readers."""
    assert not trtllm.detect(Source(str(tmp_path)))
    save_file({"x": torch.ones(1)}, str(tmp_path / "model-00001-of-00002.safetensors"))
    assert not trtllm.detect(Source(str(tmp_path)))
    assert not trtllm.detect(Source(str(tmp_path / "model-00001-of-00002.safetensors")))


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    _sound(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(InputError, match=r"pip install 'eplb\[formats\]'"):
        _read(tmp_path)


def test_too_many_counts_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    """A window an iteration can be more than any memory; fewer windows are proposed."""
    for rank in range(2):
        _save(tmp_path, rank, {f"{i}_{layer}": [] for i in range(50) for layer in range(50)})
    _meta(tmp_path, num_experts=1_000_000)
    with pytest.raises(InputError, match=r"50 windows × 50 layers .* --window-steps with a larger"):
        _read(tmp_path)


def test_one_rank_alone_is_sent_to_its_folder(tmp_path: Path) -> None:
    """The file of one rank misses what the others counted."""
    _sound(tmp_path)
    source = Source(str(tmp_path / "rank0.safetensors"))
    assert trtllm.detect(source)
    with pytest.raises(InputError, match="give the folder"):
        trtllm.read(source, Hints())


def _safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _put(name: str, data: bytes | str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(
        data.encode() if isinstance(data, str) else data
    )


def _keys(raw: str = "", **changed: object) -> Callable[[Path], object]:
    """Rank 1 with these tensors beside or instead of its own."""

    def write(folder: Path) -> None:
        (folder / "rank1.safetensors").unlink()
        own = {f"{i}_{layer}": [0, 0, 0, 0] for i in (100, 101) for layer in (3, 4)}
        _save(folder, 1, changed if raw else {**own, **changed}, raw)

    return write


def _cut(folder: Path) -> None:
    path = folder / "rank0.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def _link(name: str) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        inside = folder / name
        outside = folder.parent / f"outside-{folder.name}"
        inside.rename(outside)
        inside.symlink_to(outside)

    return make


def _only_pickles(folder: Path) -> None:
    for path in folder.glob("rank*"):
        path.unlink()
    (folder / "rank_0.pkl").write_bytes(pickle.dumps({(100, 3): [1, 2]}))


def _remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def _folder(folder: Path) -> None:
    (folder / "rank2.safetensors").mkdir()


def _nothing(folder: Path) -> None:
    for rank in range(2):
        _save(folder, rank, {})


_ROW = {"dtype": "I64", "shape": [4], "data_offsets": [0, 32]}
_META = "meta_info.json: num_experts"
HOSTILE = {
    "no meta": (_remove("meta_info.json"), "there is no meta_info.json, which rank 0 writes"),
    "a meta of no JSON": (_put("meta_info.json", "{num"), "meta_info.json, line 1"),
    "an empty meta": (_put("meta_info.json", ""), "meta_info.json is empty"),
    "a meta of nothing": (_put("meta_info.json", "null"), "holds 'None'; an object"),
    "a meta of a list": (_put("meta_info.json", "[4]"), "an object is expected"),
    "a meta of two lines": (_put("meta_info.json", "{}\n{}"), "meta_info.json, line 2"),
    "no num_experts": (_put("meta_info.json", "{}"), f"{_META} is None"),
    "num_experts of text": (_put("meta_info.json", '{"num_experts": "4"}'), f"{_META} is '4'"),
    "num_experts of true": (_put("meta_info.json", '{"num_experts": true}'), f"{_META} is True"),
    "num_experts of 0": (_put("meta_info.json", '{"num_experts": 0}'), f"{_META} is 0"),
    "too many experts": (_put("meta_info.json", '{"num_experts": 9999999}'), "is 9999999"),
    "other num_experts": (
        _put("meta_info.json", '{"num_experts": 5}'),
        r"rank0.safetensors, 100_3 has shape \[4\].*; 5 whole numbers",
    ),
    "a top_k above": (
        _put("meta_info.json", '{"num_experts": 4, "num_experts_per_token": 5}'),
        "num_experts_per_token is 5; a whole number of 1 to 4",
    ),
    "a top_k of text": (
        _put("meta_info.json", '{"num_experts": 4, "num_experts_per_token": "2"}'),
        "num_experts_per_token is '2'",
    ),
    "a meta elsewhere": (_link("meta_info.json"), "meta_info.json is a link out of the folder"),
    "a rank elsewhere": (_link("rank1.safetensors"), "rank1.safetensors is a link out"),
    "a folder for a rank": (_folder, "rank2.safetensors is no plain file"),
    "no rank": (
        _remove("rank0.safetensors", "rank1.safetensors"),
        "there is no rank<r>.safetensors; .*EXPERT_STATISTIC_ITER_RANGE",
    ),
    "empty ranks": (_nothing, "hold no counts at all"),
    "pickles": (_only_pickles, "rank_0.pkl is a pickle, as very early versions"),
    "a file cut short": (_cut, "rank0.safetensors is not a readable safetensors file"),
    "an empty file": (_put("rank1.safetensors", b""), "rank1.safetensors is not a readable"),
    "a header longer than the file": (
        _put("rank1.safetensors", struct.pack("<Q", 2**40) + b"{}"),
        "rank1.safetensors is not a readable",
    ),
    "a header of no JSON": (
        _put("rank1.safetensors", struct.pack("<Q", 8) + b"{'1_3':}"),
        "rank1.safetensors is not a readable",
    ),
    "a header with holes": (
        _put("rank1.safetensors", _safetensors({"1_3": _ROW}, bytes(40))),
        "rank1.safetensors is not a readable",
    ),
    "a header past the end": (
        _put("rank1.safetensors", _safetensors({"1_3": _ROW}, bytes(24))),
        "rank1.safetensors is not a readable",
    ),
    "a header of a wrong size": (
        _put("rank1.safetensors", _safetensors({"1_3": {**_ROW, "shape": [2**62]}}, bytes(32))),
        "rank1.safetensors is not a readable",
    ),
    "overlapping tensors": (
        _put("rank1.safetensors", _safetensors({"1_3": _ROW, "1_4": _ROW}, bytes(32))),
        "rank1.safetensors is not a readable",
    ),
    "a pickle by a rank's name": (
        _put("rank1.safetensors", pickle.dumps({"1_3": [1]})),
        "rank1.safetensors is not a readable",
    ),
    "a gzip by a rank's name": (_put("rank1.safetensors", b"\x1f\x8b\x08"), "gzip"),
    "a type numpy lacks": (
        _keys(**{"100_3": torch.zeros(4, dtype=torch.float8_e5m2)}),
        "rank1.safetensors(, 100_3| is not a readable)",
    ),
    "fractions": (_keys(**{"100_3": torch.ones(4)}), "100_3 has shape .*float32; 4 whole"),
    "NaN": (_keys(**{"100_3": torch.full((4,), torch.nan)}), "type float32; 4 whole numbers"),
    "a mask": (_keys(**{"100_3": torch.ones(4, dtype=torch.bool)}), "type bool; 4 whole numbers"),
    "a scalar": (_keys(**{"100_3": torch.tensor(4)}), r"100_3 has shape \[\]"),
    "a matrix": (_keys(**{"100_3": [[1, 2, 3, 4]]}), r"100_3 has shape \[1, 4\]"),
    "a shorter layer": (_keys(**{"101_4": [1, 2, 3]}), r"rank1.*, 101_4 has shape \[3\]"),
    "a negative count": (
        _keys(**{"101_3": [0, 0, -7, 0]}),
        "rank1.safetensors, 101_3: expert 2 has -7 tokens",
    ),
    "a huge count": (
        _keys(**{"101_3": [0, 2**62, 0, 0]}),
        "101_3: expert 1 has 4611686018427387904 tokens; 0 or more, and less than 4294967296",
    ),
    "a key of words": (_keys(**{"lm_head.weight": [1]}), "a tensor 'lm_head.weight'; names as"),
    "a key of one number": (_keys(**{"100": [1]}), "a tensor '100'"),
    "a negative layer": (_keys(**{"100_-1": [1]}), "a tensor '100_-1'"),
    "a key that is another": (_keys(**{"0100_3": [1, 1, 1, 1]}), "a tensor '0100_3'"),
    "a key of other digits": (_keys(**{"١٠٠_3": [1]}), "has a tensor"),
    "a huge iteration": (_keys(**{f"{10**30}_3": [1]}), "has a tensor '1000"),
    "a hole": (
        _keys(**{"102_3": [1, 2, 3, 4]}),
        "no rank has counts of layer 4 in iteration 102, .*1 such holes",
    ),
    "an id too large": (
        _keys("_raw", **{"100_3": [[0, 4]]}),
        "rank1_raw.safetensors, 100_3 has expert 4; ids from 0 to 3",
    ),
    "an id below −1": (_keys("_raw", **{"100_3": [[0, -2]]}), "100_3 has expert -2"),
    "ids of other top_k": (
        _keys("_raw", **{"100_3": [[0, 1, 2]]}),
        r"shape \[1, 3\].*ids of \[tokens, 2\]",
    ),
    "ids in one row": (_keys("_raw", **{"100_3": [0, 1]}), r"100_3 has shape \[2\]"),
    "ids of fractions": (_keys("_raw", **{"100_3": torch.ones(1, 2)}), "type float32; ids of"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_folders_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule of a sound recording and is told so."""
    spoil, message = HOSTILE[what]
    folder = tmp_path / "statistics"
    folder.mkdir()
    _sound(folder)
    _read(folder)
    spoil(folder)
    with pytest.raises(InputError, match=message):
        _read(folder)

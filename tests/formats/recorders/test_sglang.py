"""What SGLang's expert distribution recorder writes, in every mode and age."""

import gzip
import json
import zipfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eplb.errors import EplbError, InputError, RefusedError
from eplb.formats.recorders import sglang
from eplb.formats.recorders.sglang.stat import time_order
from eplb.formats.source import Hints, Source
from eplb.formats.traces import read_trace
from eplb.routes import RouteTrace
from eplb.trace import LoadTrace

# Two layers (the first is dense), three experts on four slots; layer 1 holds expert 0 twice.
MAP = [[0, 1, 2, 0], [0, 0, 1, 2]]
STEM = "expert_distribution_recorder_1767225600"


def _read(path: Path, **hints: Any) -> tuple[LoadTrace | RouteTrace, list[str]]:
    source = Source(str(path))
    assert sglang.detect(source)
    return sglang.read(source, Hints(**hints))


def _loads(path: Path, **hints: Any) -> tuple[LoadTrace, list[str]]:
    trace, notes = _read(path, **hints)
    assert isinstance(trace, LoadTrace)
    return trace, notes


def _routes(path: Path, **hints: Any) -> tuple[RouteTrace, list[str]]:
    trace, notes = _read(path, **hints)
    assert isinstance(trace, RouteTrace)
    return trace, notes


def _record(pass_id: int, rank: int, moe_row: list[int], **more: Any) -> dict[str, Any]:
    """A record of one pass as the recorder makes it; the dense layer counts nothing."""
    return {
        "forward_pass_id": pass_id,
        "rank": rank,
        "gatherer_key": "primary",
        **more,
        "global_physical_count": torch.tensor([[0] * len(moe_row), moe_row], dtype=torch.int32),
    }


def _dump(
    folder: Path, name: str, records: object, placement: object = MAP, **more: object
) -> Path:
    path = folder / f"{STEM}.{name}.pt"
    map_ = torch.tensor(placement, dtype=torch.int64) if isinstance(placement, list) else placement
    torch.save({"records": records, "last_physical_to_logical_map": map_, **more}, path)
    return path


def _ring(folder: Path, rows: list[int], name: str = "5") -> Path:
    """A `stat` dump of two layers and two experts; each number is the load of a pass."""
    count = torch.zeros((len(rows), 2, 2), dtype=torch.int32)
    count[:, 1, 1] = torch.tensor(rows)
    path = folder / f"{STEM}.{name}.pt"
    torch.save(
        {"rank": 0, "logical_count": count, "average_utilization_rate_over_window": None}, path
    )
    return path


# JSON of counts


def test_counts_of_all_decoder_layers(tmp_path: Path) -> None:
    """Rows are decoder layers; the dense ones are zero and keep their numbers until dropped."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"logical_count": [[0, 0], [3, 4]], "rank": 0, "colour": 1}))
    reading = read_trace(str(path))
    assert isinstance(reading.trace, LoadTrace)
    assert reading.trace.tokens.tolist() == [[[0, 0], [3, 4]]]
    assert reading.trace.dense_layers().tolist() == [True, False]
    assert (reading.format, reading.notes) == ("sglang", ("unknown key 'colour' was left aside",))


def test_passes_are_windows(tmp_path: Path) -> None:
    """A leading axis of forward passes is the windows, and may hold averages."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"logical_count": [[[1, 2]], [[3, 4.5]]]}))
    trace, notes = _loads(path)
    assert trace.tokens.tolist() == [[[1, 2]], [[3, 4.5]]]
    assert trace.window_steps == 1
    assert len(notes) == 1
    assert "all 2 entries of the ring hold a pass" in notes[0]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (7, "no list"),
        ([[1, 2], [3]], r"logical_count\[1\] has 1 entries"),
        ([], "is empty"),
        ([[[0, 0]], [[0, 0]]], "no pass was recorded"),
        ([[[1, -1]]], "cannot be negative"),
    ],
)
def test_hostile_counts(tmp_path: Path, counts: object, message: str) -> None:
    """The key is named in the message."""
    path = tmp_path / "dump.json"
    path.write_text(json.dumps({"logical_count": counts}))
    with pytest.raises(InputError, match=message):
        read_trace(str(path))


# Modes stat and stat_approx


def test_a_ring_partly_filled(tmp_path: Path) -> None:
    """Unused entries at the end are left aside; each pass is a window, dense rows stay."""
    trace, notes = _loads(_ring(tmp_path, [5, 6, 7, 0, 0]))
    assert trace.tokens[:, 1, 1].tolist() == [5, 6, 7]
    assert trace.tokens.shape == (3, 2, 2)
    assert trace.dense_layers().tolist() == [True, False]
    assert trace.window_steps == 1
    assert notes == ["2 of 5 entries of the ring hold no counts"]


def test_a_ring_that_wrapped_is_turned_back(tmp_path: Path) -> None:
    """The oldest pass is the one after the gap, as a dump does not reset where writing goes on."""
    trace, notes = _loads(_ring(tmp_path, [3, 4, 0, 0, 1, 2]))
    assert trace.tokens[:, 1, 1].tolist() == [1, 2, 3, 4]
    assert "start at entry 4" in notes[1]


@pytest.mark.parametrize(
    ("rows", "order", "num_notes"),
    [
        ([1, 2, 3], [0, 1, 2], 1),  # full: the start of time is not known
        ([9], [0], 0),
        ([0, 1, 2, 0], [1, 2], 1),
        ([0, 0, 7, 0], [2], 1),
        ([1, 0, 2, 0, 0, 0], [0, 2], 2),  # a pass without tokens within
        ([2, 0, 0, 0, 1, 0], [4, 0], 2),
        ([0, 0], [], 1),
    ],
)
def test_time_order_of_a_ring(rows: list[int], order: list[int], num_notes: int) -> None:
    """Time starts after the longest gap, seen as a circle; doubts are noted."""
    found, notes = time_order(np.array(rows).reshape(-1, 1, 1))
    assert found.tolist() == order
    assert len(notes) == num_notes


def test_passes_of_a_ring_are_summed(tmp_path: Path) -> None:
    """At most 128 windows by default, or those of the steps asked for, in order of time."""
    path = _ring(tmp_path, [*range(201, 301), *[0] * 50, *range(1, 201)])
    trace, notes = _loads(path)
    assert (trace.num_windows, trace.window_steps) == (100, 3)
    assert trace.tokens[0, 1, 1] == 1 + 2 + 3
    assert trace.tokens.sum() == sum(range(1, 301))
    assert any("300 forward passes are summed into 100 windows of 3" in note for note in notes)
    steps, _ = _loads(path, window_steps=7)
    assert steps.tokens[-1, 1, 1] == sum(range(288, 295))


def test_several_rings_are_one_timeline(tmp_path: Path) -> None:
    """Dumps follow one another by name, and windows go on across them."""
    _ring(tmp_path, [3, 4, 5, 0], name="25")
    _ring(tmp_path, [0, 1, 2, 0], name="1")
    trace, notes = _loads(tmp_path, window_steps=2)
    assert trace.tokens[:, 1, 1].tolist() == [1 + 2, 3 + 4]
    assert f"{STEM}.1.pt: 2 of 4 entries of the ring hold no counts" in notes
    assert any("the last 1 of 5 passes fill no window" in note for note in notes)


def test_an_empty_dump_beside_others_is_noted(tmp_path: Path) -> None:
    """A dump right after another one holds nothing, which does no harm."""
    _ring(tmp_path, [3, 0], name="1")
    _ring(tmp_path, [0, 0], name="2")
    trace, notes = _loads(tmp_path)
    assert trace.tokens.sum() == 3
    assert f"{STEM}.2.pt: all 2 entries are empty" in notes[1]


def test_counts_summed_by_hand(tmp_path: Path) -> None:
    """[layers, experts] in a .pt file is one window of unknown length, a folder one for each."""
    for name in ("a", "b"):
        torch.save({"logical_count": torch.tensor([[0, 0], [3, 4]])}, tmp_path / f"{name}.pt")
    trace, notes = _loads(tmp_path / "a.pt")
    assert (trace.tokens.tolist(), trace.window_steps, notes) == ([[[0, 0], [3, 4]]], None, [])
    assert _loads(tmp_path)[0].num_windows == 2


def test_whole_floats_are_counts(tmp_path: Path) -> None:
    """Counts kept in a float type become integers."""
    torch.save({"logical_count": torch.tensor([[[1.0, 2.0]]])}, tmp_path / "a.pt")
    trace, _ = _loads(tmp_path / "a.pt")
    assert trace.tokens.dtype == np.int64
    assert trace.tokens.tolist() == [[[1, 2]]]


def test_dumps_are_read_however_torch_kept_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of a GPU, as the recorder saves them, packed files and torch's old format."""
    whole = {"rank": 0, "logical_count": torch.tensor([[[0, 3]], [[0, 0]]], dtype=torch.int32)}
    torch.save(whole, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
        torch.save(whole, tmp_path / "gpu.pt")
    assert b"cuda:0" in (tmp_path / "gpu.pt").read_bytes()
    (tmp_path / "packed.pt").write_bytes(gzip.compress((tmp_path / "gpu.pt").read_bytes()))
    for name in ("old.pt", "gpu.pt", "packed.pt"):
        assert _loads(tmp_path / name)[0].tokens.tolist() == [[[0, 3]]], name


# Modes per_pass and per_token


def test_counts_by_pass_are_summed_over_ranks_and_folded(tmp_path: Path) -> None:
    """Slots 0 and 1 of layer 1 are expert 0; passes are in order of their ids, not of records."""
    _dump(tmp_path, "1_0", [_record(8, 0, [10, 20, 30, 40]), _record(7, 0, [1, 2, 3, 4])])
    _dump(tmp_path, "2_1", [_record(7, 1, [100, 0, 0, 0]), _record(8, 1, [0, 0, 0, 200])])
    trace, notes = _loads(tmp_path)
    assert trace.tokens.tolist() == [
        [[0, 0, 0], [103, 3, 4]],
        [[0, 0, 0], [30, 30, 240]],
    ]
    assert (trace.window_steps, trace.top_k, notes) == (1, None, [])


def test_passes_are_summed_into_windows(tmp_path: Path) -> None:
    """Windows of the steps asked for; the partial last one is dropped; one file is enough."""
    path = _dump(tmp_path, "1_0", [_record(i, 0, [i, 0, 0, 1]) for i in range(7)])
    trace, notes = _loads(path, window_steps=3)
    assert trace.tokens[:, 1].tolist() == [[0 + 1 + 2, 0, 3], [3 + 4 + 5, 0, 3]]
    assert notes == ["the last 1 of 7 passes fill no window and are left aside"]


@pytest.mark.parametrize("seed", range(3))
def test_sums_equal_those_of_plain_loops(tmp_path: Path, seed: int) -> None:
    """Any passes, ranks, layers and placements give what summing one by one gives."""
    rng = np.random.default_rng(seed)
    passes, ranks, layers, slots, experts, size = 11, 3, 4, 12, 9, 4
    rows = [[*range(experts), *rng.integers(0, experts, slots - experts)] for _ in range(layers)]
    table = np.array([rng.permutation(row) for row in rows])
    counts = rng.integers(0, 99, (passes, ranks, layers, slots))
    for rank in range(ranks):
        records = [
            {
                "forward_pass_id": 5 * i,
                "rank": rank,
                "global_physical_count": torch.tensor(counts[i, rank]),
            }
            for i in range(passes)
        ]
        _dump(tmp_path, f"1_{rank}", records, torch.tensor(table))
    expected = np.zeros((passes // size, layers, experts), int)
    for i in range(passes // size * size):
        for rank, layer, slot in np.ndindex(ranks, layers, slots):
            expected[i // size, layer, table[layer, slot]] += counts[i, rank, layer, slot]
    assert np.array_equal(_loads(tmp_path, window_steps=size)[0].tokens, expected)


def test_missing_and_extra_passes_are_noted(tmp_path: Path) -> None:
    """The first file says which passes there are; absent ranks have numbers."""
    _dump(tmp_path, "1_0", [_record(i, 0, [1, 1, 1, 1]) for i in (4, 5)])
    _dump(tmp_path, "1_3", [_record(i, 3, [1, 2, 1, 1]) for i in (3, 4)])
    trace, notes = _loads(tmp_path)
    assert trace.tokens[:, 1].tolist() == [[5, 2, 2], [2, 1, 1]]
    assert any("no record of rank 1, 2, though of rank 3" in note for note in notes)
    assert any("of 2 passes are missing: 1 of rank 3" in note for note in notes)
    assert any("left aside: 1 of rank 3" in note for note in notes)


def test_ranks_that_counted_the_same_tokens_are_noted(tmp_path: Path) -> None:
    """Without an all-to-all backend totals are multiplied by the ranks."""
    for rank in (0, 1):
        _dump(tmp_path, f"1_{rank}", [_record(i, rank, [i, 2, 3, 4]) for i in range(3)])
    notes = _loads(tmp_path)[1]
    assert len(notes) == 1
    assert "2 ranks counted exactly the same" in notes[0]


def test_later_dumps_go_on_with_their_own_map(tmp_path: Path) -> None:
    """Several dumps are one timeline; each is folded by the map it ends with, which is noted."""
    for rank in (0, 1):
        _dump(tmp_path, f"1{rank}_{rank}", [_record(0, rank, [1, 2, 3, 4 + rank])])
        later = [_record(1, rank, [1, 2, 3, 4 + rank])]
        _dump(tmp_path, f"2{rank}_{rank}", later, [MAP[0], [2, 1, 0, 0]])
    trace, notes = _loads(tmp_path)
    assert trace.tokens[:, 1].tolist() == [[6, 6, 9], [15, 4, 2]]
    assert len(notes) == 1
    assert "2 different maps" in notes[0]


def test_a_placement_given_beside_is_not_needed(tmp_path: Path) -> None:
    """The dump has its own map, and says that the option did nothing."""
    from eplb.placement import linear

    path = _dump(tmp_path, "1_0", [_record(0, 0, [1, 2, 3, 4])])
    assert "no live plan is needed" in _loads(path, recorded_under=linear(2, 3, 4, 2))[1][0]


def _tokens(*slots: list[int]) -> dict[str, Any]:
    """What mode `per_token` adds, for tokens with these slots in layer 1; widths are always 8."""
    ids = torch.full((2, len(slots), 8), -1, dtype=torch.int32)
    for token, chosen in enumerate(slots):
        ids[1, token, : len(chosen)] = torch.tensor(chosen)
    return {
        "input_ids": [11] * len(slots), "positions": [*range(len(slots))], "extend_seq_lens": None,
        "forward_mode": 2, "topk_ids_of_layer": ids, "misc_objects": [],
    }  # fmt: skip


def test_tokens_become_routes(tmp_path: Path) -> None:
    """Slots become experts, filler columns go, tokens are in order of passes and then ranks."""
    counts = [0, 0, 0, 0]  # beside the routes, counts are not needed
    _dump(
        tmp_path, "1_0",
        [_record(9, 0, counts, **_tokens([0, 2])), _record(4, 0, counts, **_tokens([3, 2], [1]))],
    )  # fmt: skip
    _dump(
        tmp_path, "1_1",
        [_record(4, 1, counts, **_tokens([2, 1])), _record(9, 1, counts, **_tokens())],
    )  # fmt: skip
    trace, notes = _routes(tmp_path)
    assert trace.experts[:, 1].tolist() == [[2, 1], [0, -1], [1, 0], [0, 1]]
    assert (trace.experts[:, 0] == -1).all()
    assert trace.step is not None
    assert trace.source_rank is not None
    assert trace.step.tolist() == [0, 0, 0, 1]
    assert trace.source_rank.tolist() == [0, 0, 1, 0]
    assert (trace.num_experts, trace.top_k, trace.window_steps, notes) == (3, 2, 1, [])
    assert trace.windows().tokens[:, 1].tolist() == [[2, 2, 1], [1, 1, 0]]


def test_tokens_seen_by_all_ranks_are_kept_once(tmp_path: Path) -> None:
    """Ranks whose routes are the same in every pass saw the same tokens; chance passes do not."""
    for rank in (0, 1):
        same = [_record(i, rank, [0] * 4, **_tokens([0, 2], [3])) for i in range(2)]
        _dump(tmp_path, f"1_{rank}", same)
    trace, notes = _routes(tmp_path)
    assert len(trace.experts) == 4
    assert trace.source_rank is None
    assert "2 ranks routed exactly the same" in notes[0]
    other = _tokens([2, 0], [3])
    _dump(
        tmp_path, "1_1",
        [_record(0, 1, [0] * 4, **_tokens([0, 2], [3])), _record(1, 1, [0] * 4, **other)],
    )  # fmt: skip
    trace, notes = _routes(tmp_path)
    assert (len(trace.experts), notes) == (8, [])


def test_ids_beyond_the_slots_are_shared_experts(tmp_path: Path) -> None:
    """They are no routed experts: SGLang's counters leave them aside too."""
    path = _dump(tmp_path, "1_0", [_record(0, 0, [0] * 4, **_tokens([0, 2, 4]))])
    trace, notes = _routes(path)
    assert trace.experts[:, 1].tolist() == [[0, 1]]
    assert "1 ids beyond the 4 slots" in notes[0]


def test_windows_of_routes_follow_the_steps_asked_for(tmp_path: Path) -> None:
    """The suggestion of the trace is what counts by pass would get."""
    records = [_record(i, 0, [0] * 4, **_tokens([0, 2])) for i in range(4)]
    trace, _ = _routes(_dump(tmp_path, "1_0", records), window_steps=2)
    assert trace.window_steps == 2
    assert trace.windows().tokens[:, 1].tolist() == [[2, 2, 0], [2, 2, 0]]


# The CSV of older versions


def _table(folder: Path, rank: int, *lines: str, time: int = 1) -> Path:
    path = folder / f"expert_distribution_rank{rank}_timestamp174480000{time}.5.csv"
    path.write_text("\n".join(["layer_id,expert_id,count", *lines, ""]))
    return path


def test_tables_are_summed_over_ranks(tmp_path: Path) -> None:
    """Only what was counted has a line; layers keep their numbers."""
    _table(tmp_path, 0, "4,1,7", "3,0,5")
    _table(tmp_path, 1, "4,1,1", "4,2,2")
    trace, notes = _loads(tmp_path)
    assert trace.tokens.tolist() == [[[5, 0, 0], [0, 8, 2]]]
    assert trace.layer_ids.tolist() == [3, 4]
    assert len(notes) == 1
    assert "3 is taken" in notes[0]
    assert _loads(tmp_path, num_experts=5)[0].num_experts == 5
    assert _loads(tmp_path / "expert_distribution_rank0_timestamp1744800001.5.csv", num_experts=5)[
        0
    ].tokens.tolist() == [[[5, 0, 0, 0, 0], [0, 7, 0, 0, 0]]]


def test_what_names_and_sums_of_tables_say_is_noted(tmp_path: Path) -> None:
    """Ranks that counted the same, several dumps of one rank, and a rank without a file."""
    for rank, time in ((0, 1), (0, 2), (2, 1)):
        _table(tmp_path, rank, "0,0,5", "0,1,5", time=time)
    trace, notes = _loads(tmp_path, num_experts=2)
    assert trace.tokens.tolist() == [[[15, 15]]]
    assert "3 files hold the same counts" in notes[0]
    assert "several dumps of rank 0" in notes[1]
    assert "no file of rank 1" in notes[2]


# Detection and what is refused


def test_what_is_not_from_sglang_is_left_to_others(tmp_path: Path) -> None:
    """Other content under the recorder's endings is not claimed, whatever cannot be read."""
    torch.save({"weights": torch.ones(2)}, tmp_path / "model.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "other.csv").write_text("layer,expert\n1,2\n")
    (tmp_path / "bare.json").write_text("[[1, 2]]")
    for name in ("model.pt", "list.pt", "other.csv", "bare.json", "."):
        assert not sglang.detect(Source(str(tmp_path / name))), name
    other = tmp_path / "other"
    other.mkdir()
    torch.save(Fraction(1, 2), other / "optimizer.pt")
    assert not sglang.detect(Source(str(other)))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert not sglang.detect(Source(str(empty)))


def test_the_number_of_experts_is_checked(tmp_path: Path) -> None:
    """A recording of another model is refused."""
    path = _dump(tmp_path, "1_0", [_record(0, 0, [1, 2, 3, 4])])
    assert _loads(path, num_experts=3)[0].num_experts == 3
    ring = _ring(tmp_path, [1, 0], name="r")
    table = _table(tmp_path, 0, "0,300,5")
    for wrong in (path, ring, table):
        with pytest.raises(RefusedError, match=r"and 256 are expected|expert 300; .* 0 to 255"):
            _read(wrong, num_experts=256)


Ready = Callable[[Path], object]


def _stat(value: object) -> Ready:
    return lambda folder: torch.save({"logical_count": value}, folder / f"{STEM}.pt")


def _passes(*records: object, placement: object = MAP) -> Ready:
    return lambda folder: _dump(folder, "1_0", list(records), placement)


def _changed(**change: object) -> Ready:
    return _passes({**_record(0, 0, [1, 2, 3, 4]), **change})


def _files(*writers: Ready) -> Ready:
    return lambda folder: [write(folder) for write in writers]


def _without(key: str) -> Ready:
    record = _record(0, 0, [1, 2, 3, 4])
    del record[key]
    return _passes(record)


def _broken(change: Callable[[Path], object]) -> Ready:
    return lambda folder: change(_dump(folder, "1_0", [_record(0, 0, [1, 2, 3, 4])]))


def _deflate(path: Path) -> None:
    """A zip like torch's, but packed: 64 MB of zeros in a few KB."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("archive/data/0", bytes(2**26))


def _link_out(path: Path) -> None:
    path.rename(path.parent.parent / "outside.pt")
    path.symlink_to(path.parent.parent / "outside.pt")


GOOD = _record(0, 0, [1, 2, 3, 4])
LATER = [_record(1, 1, [1, 2, 3, 4])]


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_stat([[1, 2]]), "'logical_count' is a list; a tensor"),
        (_stat(torch.ones(3, dtype=torch.int32)), r"shape \(3,\); \[passes, layers, experts\]"),
        (_stat(torch.ones((1, 1, 2, 2))), r"shape \(1, 1, 2, 2\)"),
        (_stat(torch.ones((0, 2, 2))), "at least one of each"),
        (_stat(torch.ones((1, 2, 2), dtype=torch.bool)), "is of type bool; integers"),
        (_stat(torch.ones((1, 2, 2), dtype=torch.complex64)), "is of type complex64"),
        (_stat(torch.tensor([[[1, 2.5]]])), r"logical_count\[0\]\[0\]\[1\] is 2.5; whole numbers"),
        (_stat(torch.tensor([[[1, torch.nan]]])), r"\[1\] is nan; whole numbers"),
        (_stat(torch.tensor([[[1, torch.inf]]])), r"\[1\] is inf; no forward pass"),
        (_stat(torch.tensor([[[1, -2]]])), r"\[1\] is -2; counts cannot be negative"),
        (_stat(torch.tensor([[[1, 2**62]]])), "no forward pass has as many"),
        (_stat(torch.zeros((4, 2, 2), dtype=torch.int32)), "no pass was recorded"),
        (_stat(torch.tensor([[1, -2]])), "cannot be negative"),
        (_stat(torch.eye(2).to_sparse()), "sparse"),
        (
            _files(_stat(torch.ones(1, 2, 2)), lambda f: torch.save(
                {"logical_count": torch.ones(1, 2, 3)}, f / "f.pt")),
            "f.pt: 'logical_count' has other layers",
        ),
        (
            _files(_stat(torch.ones(1, 2, 2)), lambda f: torch.save(
                {"logical_count": torch.ones(2, 2)}, f / "f.pt")),
            "f.pt: 'logical_count' has other layers, experts or axes",
        ),
        (
            _files(_stat(torch.ones(1, 2, 2)), lambda f: torch.save([], f / "f.pt")),
            "f.pt: there is no 'logical_count'",
        ),
        (_passes(), "'records' is empty"),
        (lambda f: _dump(f, "1_0", {"a": 1}), "'records' is a dict; a list"),
        (_passes(7), r"records\[0\] is a int"),
        (_without("forward_pass_id"), r"records\[0\] has no 'forward_pass_id'"),
        (_without("rank"), r"records\[0\] has no 'rank'"),
        (_without("global_physical_count"), "has no 'global_physical_count'"),
        (_changed(forward_pass_id=True), "forward_pass_id is True; a whole number"),
        (_changed(forward_pass_id=-1), "forward_pass_id is -1"),
        (_changed(rank=10**12), "rank is 1000000000000; a whole number from 0 to 65535"),
        (_changed(global_physical_count=torch.ones((2, 3))), "3 slots and the map .* 2 × 4"),
        (_changed(global_physical_count=torch.ones(4)), r"shape \(4,\); \[layers, slots\]"),
        (_changed(global_physical_count=-torch.ones((2, 4))), "is -1.0; counts cannot be negative"),
        (_passes(GOOD, placement=[[0, 1, 2, 0], [0, -1, 1, 2]]), r"map\[1\]\[1\] is -1"),
        (_passes(GOOD, placement=[[0, 1, 2, 4], [0, 0, 1, 2]]), r"map\[0\]\[3\] is 4; ids"),
        (_passes(GOOD, placement=[[0, 1, 3, 0], [0, 1, 2, 3]]), "no slot of expert 2 in layer 0"),
        (_passes(GOOD, placement=[0, 1, 2, 3]), r"shape \(4,\); \[layers, slots\]"),
        (_passes(GOOD, placement=torch.zeros((0, 4), dtype=torch.int64)), r"shape \(0, 4\)"),
        (_passes(GOOD, placement=torch.ones((2, 4))), "is float32; a tensor of integers"),
        (_passes(GOOD, placement=None), "is NoneType; a tensor of integers"),
        (_passes(GOOD, GOOD), "pass 0 of rank 0 is there twice"),
        (
            _files(_passes(GOOD), lambda f: _dump(f, "2_1", [_record(0, 1, [1, 2, 3, 4])],
                                                  [MAP[1], MAP[0]])),
            "2_1.pt: 'last_physical_to_logical_map' is not the same as on other ranks in pass 0",
        ),
        (
            _files(_passes(GOOD), lambda f: _dump(f, "2_1", LATER, [[0, 1, 0, 1], [0, 1, 0, 1]])),
            "2 layers × 4 slots of 2 experts and that of the first file 2 layers × 4 slots of 3",
        ),
        (
            _files(_passes(GOOD), lambda f: torch.save({"records": LATER}, f / "f_1.pt")),
            "f_1.pt: there is no 'last_physical_to_logical_map'",
        ),
        (
            _files(_passes(GOOD), lambda f: torch.save({"logical_count": [1]}, f / "f_1.pt")),
            "f_1.pt: it is no dump by pass and rank",
        ),
        (_passes(GOOD, _record(1, 0, [0] * 4, **_tokens([1]))), "has a 'topk_ids_of_layer'"),
        (_passes(_record(1, 0, [0] * 4, **_tokens([1])), GOOD), "has no 'topk_ids_of_layer'"),
        (_passes(_record(1, 0, [0] * 4, **_tokens())), "no token in it was routed"),
        (_changed(topk_ids_of_layer=torch.ones((2, 1, 8))), "type float32; integers"),
        (_changed(topk_ids_of_layer=[[1]]), "is a list; integers"),
        (_changed(topk_ids_of_layer=torch.ones((1, 1, 8), dtype=torch.int32)), "2 layers are"),
        (_changed(topk_ids_of_layer=-2 * torch.ones((2, 1, 8), dtype=torch.int32)), "is -2; slots"),
        (
            _passes(
                {**GOOD, "topk_ids_of_layer": torch.ones((2, 1, 8), dtype=torch.int32)},
                {**_record(1, 0, [1] * 4),
                 "topk_ids_of_layer": torch.ones((2, 1, 4), dtype=torch.int32)},
            ),
            "has 4 ids a token in pass 1 and 8 before",
        ),
        (lambda f: _table(f, 0), "nothing was recorded"),
        (lambda f: _table(f, 0, "1,2"), "line 2 is '1,2'; three whole numbers"),
        (lambda f: _table(f, 0, "1,2,3.5"), "line 2 is"),
        (lambda f: _table(f, 0, "0,0,1", "1,-1,3"), "line 3 is"),
        (lambda f: _table(f, 0, "0,0,nan"), "line 2 is"),
        (lambda f: _table(f, 0, "0,0,1", "0,0,1"), "line 3 counts expert 0 of layer 0 again"),
        (lambda f: _table(f, 0, f"0,0,{10**17}"), "at most 2"),
        (lambda f: _table(f, 0, "0,999999999999,1"), "more than any model has"),
        (
            _files(lambda f: _table(f, 0, "0,0,1"), lambda f: (f / "z.csv").write_text("a,b\n")),
            "z.csv: the first line is not",
        ),
        (_broken(lambda path: path.write_bytes(path.read_bytes()[:-40])), "not a whole one"),
        (lambda f: torch.save(Fraction(1, 2), f / f"{STEM}.pt"), r"needs more .*\(fractions"),
        (_broken(_deflate), "would unpack to"),
        (_broken(_link_out), "is a link out of the folder"),
    ],
)  # fmt: skip
def test_hostile_recordings(tmp_path: Path, write: Ready, message: str) -> None:
    """Each broken rule has its own message, which names the file where there are several."""
    folder = tmp_path / "dumps"
    folder.mkdir()
    write(folder)
    with pytest.raises(EplbError, match=message):
        _read(folder)

"""Bare arrays of loads in NPY and torch files."""

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from eplb.errors import EplbError, InputError, RefusedError
from eplb.formats.recorders import arrays
from eplb.formats.source import Hints, Source
from eplb.placement import Placement
from eplb.trace import LoadTrace


def _write(folder: Path, value: object) -> str:
    """A file of `value`: NPY for an array, else torch."""
    path = folder / "loads"
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif isinstance(value, np.ndarray):
        with open(path, "wb") as file:
            np.save(file, value)
    else:
        torch.save(value, path)
    return str(path)


def _read(folder: Path, value: object, **hints: object) -> tuple[LoadTrace, list[str]]:
    source = Source(_write(folder, value))
    assert arrays.detect(source)
    return arrays.read(source, Hints(**hints))  # type: ignore[arg-type]


def test_the_weight_of_a_planner_is_one_window(tmp_path: Path) -> None:
    """The tensor [layers, experts] that DeepSeek's planner takes, as torch saved it."""
    trace, notes = _read(tmp_path, torch.tensor([[90, 132, 40], [20, 107, 104]]))
    assert trace.tokens.tolist() == [[[90, 132, 40], [20, 107, 104]]]
    assert trace.tokens.dtype == np.int64
    assert trace.layer_ids.tolist() == [0, 1]
    assert notes == ["the array [2, 3] is taken for [layers, experts], one window"]


def test_a_first_axis_is_the_windows(tmp_path: Path) -> None:
    """Three axes are windows, layers and experts, and said to be."""
    trace, notes = _read(tmp_path, np.arange(6).reshape(3, 1, 2), num_experts=2)
    assert trace.tokens.tolist() == [[[0, 1]], [[2, 3]], [[4, 5]]]
    assert notes == ["the array [3, 1, 2] is taken for [windows, layers, experts]"]


@pytest.mark.parametrize("kind", ["i1", "u1", ">i2", "i4", ">u8", "f2", "f4", ">f8"])
def test_any_numbers_are_loads(tmp_path: Path, kind: str) -> None:
    """Every numeric type and byte order gives the same loads; fractions stay fractions."""
    trace, _ = _read(tmp_path, np.array([[3, 100]], kind))
    assert trace.tokens.tolist() == [[[3, 100]]]
    assert trace.tokens.dtype == (np.float64 if "f" in kind else np.int64)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64, torch.int32])
def test_any_tensor_is_loads(tmp_path: Path, kind: torch.dtype) -> None:
    """Narrow floats too, which numpy partly lacks."""
    assert _read(tmp_path, torch.tensor([[3, 96]], dtype=kind))[0].tokens.tolist() == [[[3, 96]]]


@pytest.mark.parametrize("key", ["weight", "load", "loads"])
def test_the_only_entry_of_a_torch_file_is_named(tmp_path: Path, key: str) -> None:
    """One tensor by a name of loads is taken, and the name said."""
    trace, notes = _read(tmp_path, {key: torch.tensor([[1, 2]])})
    assert trace.tokens.tolist() == [[[1, 2]]]
    assert notes[0] == f"the loads are the only entry of the file, {key!r}"


@pytest.mark.parametrize(
    "value",
    [
        {"weight": torch.ones(1, 2), "bias": torch.ones(1)},
        {"expert_load": torch.ones(1, 2)},
        {"weight": [[1, 2]]},
        {},
        [torch.ones(1, 2)],
        3,
    ],
)
def test_other_torch_files_are_not_claimed(tmp_path: Path, value: object) -> None:
    """Several entries, unknown names and plain values may be anything."""
    assert not arrays.detect(Source(_write(tmp_path, value)))


def test_other_kinds_are_not_claimed(tmp_path: Path) -> None:
    """JSON, NPZ and folders belong to other readers."""
    assert not arrays.detect(Source(str(tmp_path)))
    assert not arrays.detect(Source(_write(tmp_path, b"[[1, 2]]")))
    np.savez(tmp_path / "a.npz", loads=np.ones((1, 2)))
    assert not arrays.detect(Source(str(tmp_path / "a.npz")))


def test_a_short_last_axis_may_be_routes_and_is_said(tmp_path: Path) -> None:
    """Eight numbers at the end are experts or a top-k of eight; knowing the experts settles it."""
    values = np.ones((2, 3, 8), np.int32)
    assert "the top-k of token routes" in _read(tmp_path, values)[1][1]
    assert len(_read(tmp_path, values, num_experts=8)[1]) == 1
    assert len(_read(tmp_path, values.astype(float))[1]) == 1


LIVE = Placement(np.array([[0, 1, 1, 0], [1, 1, 1, 0]]), 2, 2)


def test_slots_are_folded_back(tmp_path: Path) -> None:
    """Counts by slot become counts by expert, with room for their sums."""
    slots = np.array([[200, 1, 2, 200], [3, 4, 5, 6]], np.uint8)
    trace, notes = _read(tmp_path, slots, recorded_under=LIVE, num_experts=2)
    assert trace.tokens.tolist() == [[[400, 3], [6, 12]]]
    assert "4 slots are folded to 2 experts" in notes[1]


@pytest.mark.parametrize("fractions", [False, True])
def test_folding_keeps_the_load(tmp_path: Path, fractions: bool) -> None:
    """Every window of random slots sums to the same by layer, expert by expert."""
    rng = np.random.default_rng(5)
    experts = np.stack([rng.permutation(np.arange(12) % 5) for _ in range(3)])
    slots = rng.integers(0, 99, (4, 3, 12)) * (0.5 if fractions else 1)
    trace, _ = _read(tmp_path, slots, recorded_under=Placement(experts, 5, 4))
    for layer in range(3):
        for expert in range(5):
            expected = slots[:, layer, experts[layer] == expert].sum(axis=1)
            assert trace.tokens[:, layer, expert].tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("hints", "error", "message"),
    [
        (
            {"num_experts": 2},
            RefusedError,
            "4 counts a layer and the model has 2.*--recorded-under",
        ),
        ({"num_experts": 8}, RefusedError, "the recording is of another model"),
        (
            {"recorded_under": Placement(np.array([[0, 1]]), 2, 1)},
            RefusedError,
            "and the placement recorded under has 2 slots$",
        ),
        (
            {"recorded_under": Placement(LIVE.physical_to_logical[:1], 2, 2)},
            RefusedError,
            "has 2 layers and the placement recorded under 1;",
        ),
    ],
)
def test_slots_are_never_taken_for_experts(
    tmp_path: Path, hints: dict[str, object], error: type[EplbError], message: str
) -> None:
    """A wrong number of counts is refused, with what would help."""
    with pytest.raises(error, match=message):
        _read(tmp_path, np.ones((2, 4), int), **hints)


def _npy(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


_AXES = r"\[layers, experts\] or \[windows, layers, experts\] is expected"
HOSTILE = {
    "a number": (np.array(3), rf"shape \[\] .*{_AXES}"),
    "a vector": (np.arange(4), rf"shape \[4\] and type int64; {_AXES}"),
    "four axes": (np.ones((2, 2, 2, 2)), rf"shape \[2, 2, 2, 2\] .*{_AXES}"),
    "a tensor of one axis": (torch.ones(4), rf"shape \[4\] and type float32; {_AXES}"),
    "no layer": (np.ones((0, 4)), "at least one of each"),
    "no expert": (torch.ones(2, 3, 0), "at least one of each"),
    "routes of few experts": (
        np.zeros((5, 4, 8), np.uint8),
        r"looks like vLLM's token routes .*numpy.savez\(file, routes=",
    ),
    "routes of many experts": (np.zeros((5, 4, 8), np.uint16), "looks like vLLM's token routes"),
    "routes of a big machine": (np.zeros((5, 4, 8), ">u2"), "looks like vLLM's token routes"),
    "routes of bytes as a tensor": (torch.zeros(5, 4, 8, dtype=torch.uint8), "token routes"),
    "routes with −1": (np.full((5, 4, 8), -1), r"loads\[0\]\[0\]\[0\] is -1"),
    "a mask": (np.ones((2, 4), bool), "type bool; numbers are expected"),
    "a mask tensor": (torch.ones(2, 4, dtype=torch.bool), "type bool; numbers are expected"),
    "complex numbers": (np.ones((2, 4), complex), "type complex128; numbers are expected"),
    "texts": (np.array([["1", "2"]]), "type <U1; numbers are expected"),
    "times": (np.zeros((1, 2), "M8[s]"), "type datetime64"),
    "records": (np.zeros((1, 2), [("a", int)]), "numbers are expected"),
    "NaN": (np.array([[1, np.nan]]), r"loads\[0\]\[0\]\[1\] is NaN"),
    "an infinite load": (torch.tensor([[1, torch.inf]]), "is inf; loads must be finite"),
    "a negative load": (np.array([[1, -2]]), r"is -2; loads are counts"),
    "a bias for a weight": ({"weight": torch.tensor([[-0.5]])}, "is -0.5; loads are counts"),
    "a load above 2^53": (np.array([[2**53 + 1]]), "above 2\\^53"),
    "a load above 2^63": (np.array([[2**64 - 1]], np.uint64), "above 2\\^53"),
    "an NPY cut short": (_npy(np.ones((2, 4)))[:-8], "not a readable NPY file"),
    "an NPY of a lying header": (
        _npy(np.ones((2, 4))).replace(b"(2, 4)", b"(9, 9)"),
        "not a readable NPY file",
    ),
    "an NPY of objects": (_npy(np.array([["a", None]], object)), "pickled Python objects"),
    "a pickled array": (pickle.dumps(np.ones((1, 2)), 2), "needs more than tensors"),
    "a sparse tensor": (torch.eye(3).to_sparse(), "sparse"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_arrays_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so."""
    value, message = HOSTILE[what]
    with pytest.raises(InputError, match=message):
        _read(tmp_path, value)

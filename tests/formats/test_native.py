"""The project's own trace files and bare lists."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eplb.errors import InputError
from eplb.formats.traces import read_trace, write_trace
from eplb.routes import RouteTrace
from eplb.trace import LoadTrace

# The trace of the file's documentation.
DOCUMENTED = """{"format": "eplb-trace", "version": 1, "model": "deepseek-v3", "layer_ids": [3, 4],
 "num_experts": 4, "num_groups": 1, "top_k": 2, "phase": "prefill", "window_steps": 100,
 "loads": [[[12, 0, 7, 9], [3, 3, 8, 14]], [[10, 1, 9, 8], [2, 4, 9, 13]]]}"""


def _write(folder: Path, content: object, name: str = "t.json") -> str:
    path = folder / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode())
    return str(path)


def test_the_documented_trace_is_read(tmp_path: Path) -> None:
    """Every key arrives where it belongs."""
    reading = read_trace(_write(tmp_path, DOCUMENTED))
    trace = reading.trace
    assert isinstance(trace, LoadTrace)
    assert trace.tokens.tolist()[1] == [[10, 1, 9, 8], [2, 4, 9, 13]]
    assert trace.layer_ids.tolist() == [3, 4]
    assert (trace.num_groups, trace.top_k, trace.window_steps) == (1, 2, 100)
    assert (trace.model, trace.phase) == ("deepseek-v3", "prefill")
    assert (reading.format, reading.notes) == ("eplb", ())


@pytest.mark.parametrize(
    ("content", "shape"), [([[1, 2], [3, 4]], (1, 2, 2)), ([[[1, 2]], [[3, 4]]], (2, 1, 2))]
)
def test_bare_lists_are_traces(tmp_path: Path, content: object, shape: tuple[int, ...]) -> None:
    """[L][E] is one window; [W][L][E] is several."""
    assert read_trace(_write(tmp_path, content)).trace.tokens.shape == shape  # type: ignore[union-attr]


def test_fractions_make_a_trace_of_averages(tmp_path: Path) -> None:
    """One fraction anywhere and all loads are float64, the whole ones unchanged."""
    trace = read_trace(_write(tmp_path, [[1, 2], [3, 2.5], [4, 1e3]])).trace
    assert isinstance(trace, LoadTrace)
    assert trace.tokens.dtype == np.float64
    assert trace.tokens.tolist() == [[[1, 2], [3, 2.5], [4, 1000]]]


def test_compressed_json_is_read(tmp_path: Path) -> None:
    """Gzip is known by its content, whatever the name."""
    path = tmp_path / "loads"
    path.write_bytes(gzip.compress(DOCUMENTED.encode()))
    assert read_trace(str(path)).trace.layer_ids.tolist() == [3, 4]


@pytest.mark.parametrize("name", ["t.json", "t.json.gz", "t.npz"])
@given(data=st.data())
def test_written_traces_read_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    """Reading a written trace is identity, and writing it again gives the same bytes."""
    tmp_path = tmp_path_factory.mktemp("t")
    shape = tuple(data.draw(st.integers(1, 3)) for _ in range(3))
    whole = data.draw(st.booleans())
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    trace = LoadTrace(
        tokens=rng.integers(0, 99, shape) if whole else rng.random(shape),
        layer_ids=rng.permutation(shape[1]) + 3,
        window_weight=rng.random(shape[0]) + 1,
        scenario=rng.integers(0, 3, shape[0]),
        num_groups=data.draw(st.sampled_from([None, 1])),
        top_k=data.draw(st.sampled_from([None, 1])),
        model=data.draw(st.sampled_from([None, "größe"])),
    )
    path, again = str(tmp_path / name), str(tmp_path / f"again-{name}")
    write_trace(trace, path)
    read = read_trace(path).trace
    assert isinstance(read, LoadTrace)
    for key in ("tokens", "layer_ids", "window_weight", "scenario"):
        assert (getattr(read, key) == getattr(trace, key)).all(), key
        assert getattr(read, key).dtype == getattr(trace, key).dtype, key
    for key in ("num_groups", "top_k", "window_steps", "model", "phase"):
        assert getattr(read, key) == getattr(trace, key), key
    write_trace(read, again)
    assert Path(path).read_bytes() == Path(again).read_bytes()


def test_routes_read_back_the_same(tmp_path: Path) -> None:
    """Ids, their type, and every column beside them."""
    trace = RouteTrace(
        np.array([[[0, 3]], [[2, 1]]], np.uint8), 5, source_rank=np.array([1, 0]),
        request=np.array([7, 8]), step=np.array([0, 4]), layer_ids=np.array([9]), num_groups=5,
        window_steps=2, window_tokens=1,
    )  # fmt: skip
    path = str(tmp_path / "r.npz")
    write_trace(trace, path)
    reading = read_trace(path)
    read = reading.trace
    assert isinstance(read, RouteTrace)
    assert reading.notes == ()
    assert (read.experts == trace.experts).all()
    assert read.experts.dtype == np.uint8
    for key in ("source_rank", "request", "step", "layer_ids"):
        assert (getattr(read, key) == getattr(trace, key)).all(), key
    assert (read.num_experts, read.num_groups, read.window_steps, read.window_tokens) == (
        5,
        5,
        2,
        1,
    )
    with pytest.raises(InputError, match="NPZ only"):
        write_trace(trace, str(tmp_path / "r.json"))


def test_unsaid_numbers_of_experts_are_derived_with_a_remark(tmp_path: Path) -> None:
    """The largest id + 1, unless the caller knows better."""
    path = tmp_path / "r.npz"
    np.savez(path, routes=np.array([[[0, 2]]]))
    reading = read_trace(str(path))
    assert reading.trace.num_experts == 3
    assert "3 is taken, the largest id + 1" in reading.notes[0]
    assert read_trace(str(path), num_experts=8).trace.num_experts == 8


def test_unknown_keys_are_named_and_accepted(tmp_path: Path) -> None:
    """A key of a later version does not stop an earlier one."""
    reading = read_trace(_write(tmp_path, {"loads": [[1]], "colour": "red"}))
    assert reading.notes == ("unknown key 'colour' was left aside",)


HOSTILE = {
    "empty file": ("", "is empty"),
    "blank file": (" \n", "is empty"),
    "not json": ("{oops", "line 1, column 2: not valid JSON"),
    "cut short": ('{"loads": [[1, 2],', "line 1, column 19"),
    "error on line three": ('{"loads":\n[[1,\n2}]]}', "line 3, column 2"),
    "a literal NaN": ("[[1, NaN]]", "line 1, column 6: NaN is not a load"),
    "a literal Infinity": ("[[1,\n Infinity]]", "line 2, column 2: Infinity is not a load"),
    "a negative Infinity": ("[[1, -Infinity]]", "-Infinity is not a load"),
    "a number that overflows": ("[[1, 1e999]]", "not valid JSON|is inf"),
    "a number": ("3", "no recording known"),
    "a text": ('"loads"', "no recording known"),
    "an empty list": ("[]", "loads is empty"),
    "an empty row": ("[[]]", "loads.0. is empty"),
    "a flat list": ("[1, 2]", "nested 1 deep"),
    "four levels": ("[[[[1]]]]", "nested 4 deep"),
    "ragged layers": ("[[1, 2], [3]]", r"loads\[1\] has 1 entries and loads\[0\] 2"),
    "ragged windows": (
        "[[[1], [2]], [[1]]]",
        r"loads\[1\] has 1 entries and loads\[0\] 2; every window",
    ),
    "a number for a row": ("[[1, 2], 3]", r"loads\[1\] has no list"),
    "a text for a load": ('[[1, "2"]]', r'loads\[0\]\[1\] is "2"'),
    "a null load": ("[[1, null]]", r"loads\[0\]\[1\] is null"),
    "a list for a load": ("[[1, [2]]]", r"loads\[0\]\[1\] is a list"),
    "a negative load": ("[[1, -2]]", r"loads\[0\]\[0\]\[1\] is -2"),
    "a load above 2^53": ("[[1, 9007199254740993]]", "above 2\\^53"),
    "a load above 2^64": ("[[1, 99999999999999999999999]]", "above 2\\^53"),
    "an empty object": ("{}", "no recording known"),
    "another format": ('{"format": "csv", "loads": [[1]]}', "the format is 'csv'"),
    "a later version": ('{"version": 2, "loads": [[1]]}', "version 2"),
    "no loads": ('{"format": "eplb-trace"}', "neither 'loads' nor 'routes'"),
    "both": ('{"loads": [[1]], "routes": [[[1]]]}', "both 'loads' and 'routes'"),
    "loads of text": ('{"loads": "many"}', "'loads' is 'many'"),
    "a wrong number of experts": ('{"loads": [[1, 2]], "num_experts": 3}', "num_experts is 3"),
    "groups of zero": ('{"loads": [[1, 2]], "num_groups": 0}', "'num_groups' is 0"),
    "groups that do not divide": ('{"loads": [[1, 2]], "num_groups": 3}', "--groups 2"),
    "top_k of true": ('{"loads": [[1, 2]], "top_k": true}', "'top_k' is True"),
    "too few layer ids": ('{"loads": [[1, 2]], "layer_ids": [1, 2]}', "each of the 1 layers"),
    "layer ids of text": ('{"loads": [[1, 2]], "layer_ids": ["a"]}', r'layer_ids\[0\] is "a"'),
    "fractions of layers": ('{"loads": [[1, 2]], "layer_ids": [1.5]}', "one integer"),
    "a model of numbers": ('{"loads": [[1, 2]], "model": 7}', "'model' is 7"),
    "a plan": ('{"format": "eplb-plan"}', "is a plan; a trace of loads is expected"),
    "routes as text": ('{"routes": "none"}', "from NPZ files only"),
    "ragged routes": ('{"routes": [[[1, 2], [3]]]}', "from NPZ files only"),
    "a mask": ("[[1, 2], [true, false]]", r"loads\[1\]\[0\] is true"),
    "no json at all": ("oops", "no recording known here: it begins with b'oops'"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_json_gets_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so, with the file's name."""
    content, message = HOSTILE[what]
    path = _write(tmp_path, content)
    with pytest.raises(InputError, match=message) as caught:
        read_trace(path)
    assert path in str(caught.value)


def _npz(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _patched(flag: int = 0, method: int = 0) -> bytes:
    """An archive with other words in the headers of its entry, local and central."""
    data = bytearray(_npz(loads=np.ones((2, 2))))
    for at in (6, data.rindex(b"PK\x01\x02") + 8):
        data[at : at + 4] = bytes([flag, 0, method, 0])
    return bytes(data)


def _lying() -> bytes:
    """An array whose header says far more than any memory holds."""
    entry = io.BytesIO()
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)}
    np.lib.format.write_array_header_1_0(entry, header)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("loads.npy", entry.getvalue())
    return out.getvalue()


def _bomb() -> bytes:
    """An array of zeros, packed a thousandfold."""
    out = io.BytesIO()
    np.savez_compressed(out, loads=np.zeros((1, 2**13, 2**13), np.int64))
    return out.getvalue()


HOSTILE_BYTES = {
    "a cut zip": (_npz(loads=np.ones((2, 2)))[:200], "begins as a zip archive"),
    "a cut gzip": (gzip.compress(b"[[1]]")[:12], "not a whole gzip file"),
    "pickled objects": (_npz(loads=np.array([None, {}])), "never loaded"),
    "a table of text": (_npz(loads=np.array([["a"]])), "numbers are expected"),
    "complex loads": (_npz(loads=np.ones((1, 1), complex)), "numbers are expected"),
    "NaN loads": (_npz(loads=np.array([[np.nan]])), "is NaN"),
    "no loads": (_npz(other=np.ones(1)), "no recording known"),
    "texts for a format": (_npz(format=np.array(["a", "b"]), loads=np.ones((1, 1))), "format is"),
    "a list of versions": (_npz(version=np.array([1, 1]), loads=np.ones((1, 1))), "is version"),
    "routes of fractions": (_npz(routes=np.ones((1, 1, 1))), "integers"),
    "routes of two axes": (_npz(routes=np.ones((1, 1), int)), r"\[tokens, layers, top_k\]"),
    "routes of another top_k": (_npz(routes=np.ones((1, 1, 1), int), top_k=2), "top_k is 2"),
    "routes without tokens": (_npz(routes=np.ones((0, 1, 1), int)), "at least one of each"),
    "steps of text": (_npz(routes=np.ones((1, 1, 1), int), step=np.array(["a"])), "'step' is"),
    "binary rubbish": (bytes(range(128, 256)), "no recording known here: it begins with"),
    "a zip that fills the memory": (_bomb(), "unpacks to more than"),
    "a gzip that fills the memory": (gzip.compress(bytes(2**29), 1), "unpacks to more than"),
    "an encrypted zip": (_patched(flag=1), "'?loads.npy'? is encrypted"),
    "another compression": (_patched(method=99), "not a readable NPZ"),
    "a shape that lies": (_lying(), "not a readable NPZ file: .*shape"),
}


@pytest.mark.parametrize("what", HOSTILE_BYTES)
def test_hostile_bytes_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Broken archives and arrays of the wrong kind are told so, with the file's name."""
    data, message = HOSTILE_BYTES[what]
    path = tmp_path / "t.npz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_trace(str(path))
    assert str(path) in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    """The reason is the system's own."""
    with pytest.raises(InputError, match=r"none.json cannot be read: No such file"):
        read_trace(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="no recording known here: a folder with no file"):
        read_trace(str(tmp_path))


def test_names_say_how_to_write(tmp_path: Path) -> None:
    """An ending that says nothing is refused."""
    with pytest.raises(InputError, match=r"\.npz, \.json or \.json\.gz"):
        write_trace(LoadTrace(np.ones((1, 1, 1))), str(tmp_path / "t.txt"))

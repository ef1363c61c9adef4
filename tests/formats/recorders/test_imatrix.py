"""llama.cpp's importance matrices."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from eplb.errors import InputError
from eplb.formats.recorders import imatrix
from eplb.formats.source import Hints, Source
from eplb.trace import LoadTrace

GATE = "blk.{}.ffn_gate_exps.weight"
ROWS = {1: [5, 0, 7], 2: [1, 2, 9]}


def _write(
    folder: Path,
    counts: dict[str, object],
    of: str = "imatrix",
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """A file as llama-imatrix writes it: sums and counts for every matrix."""
    path = folder / "imatrix.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(of)
    writer.add_array("imatrix.datasets", ["calibration.txt"])
    writer.add_uint32("imatrix.chunk_count", 2)
    writer.add_uint32("imatrix.chunk_size", 512)
    change(writer)
    for name, row in counts.items():
        array = np.asarray(row, np.float32)
        writer.add_tensor(f"{name}.in_sum2", np.ones((array.size, 4), np.float32))
        writer.add_tensor(f"{name}.counts", array.reshape(-1, 1))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _read(path: Path) -> tuple[LoadTrace, list[str]]:
    source = Source(str(path))
    assert imatrix.detect(source)
    return imatrix.read(source, Hints())


def _good(folder: Path) -> Path:
    return _write(folder, {GATE.format(layer): row for layer, row in ROWS.items()})


def test_counts_become_one_window_with_the_layers_own_numbers(tmp_path: Path) -> None:
    """Dense layers have no such tensors and stay out; all matrices of an expert say the same."""
    counts: dict[str, object] = {"blk.0.ffn_down.weight": [1024], "blk.0.attn_q.weight": [1024]}
    for layer in (10, 2):
        for part in ("down", "gate", "up"):
            counts[f"blk.{layer}.ffn_{part}_exps.weight"] = [layer, 0, 7]
    trace, notes = _read(_write(tmp_path, counts))
    assert trace.tokens.tolist() == [[[2, 0, 7], [10, 0, 7]]]
    assert trace.tokens.dtype == np.int64
    assert trace.layer_ids.tolist() == [2, 10]
    assert notes == []


@pytest.mark.parametrize("part", ["gate", "up", "down", "gate_up"])
def test_any_matrix_of_the_experts_will_do(tmp_path: Path, part: str) -> None:
    """Some models have one matrix for gate and up, some no gate at all."""
    trace, _ = _read(_write(tmp_path, {f"blk.0.ffn_{part}_exps.weight": [3, 4]}))
    assert trace.tokens.tolist() == [[[3, 4]]]


def test_the_head_is_read_as_the_official_package_reads_it(tmp_path: Path) -> None:
    """The counts are those that `gguf` finds, with an alignment of the file's own too."""
    path = _write(
        tmp_path,
        {GATE.format(layer): row for layer, row in ROWS.items()},
        change=lambda writer: writer.add_custom_alignment(256),
    )
    official = {tensor.name: tensor.data.ravel() for tensor in gguf.GGUFReader(path).tensors}
    trace, _ = _read(path)
    for row, layer in zip(trace.tokens[0], trace.layer_ids, strict=True):
        assert row.tolist() == official[f"{GATE.format(layer)}.counts"].tolist()


def test_compressed_files_are_read(tmp_path: Path) -> None:
    """What cannot be mapped is read as a whole."""
    packed = tmp_path / "imatrix.gz"
    packed.write_bytes(gzip.compress(_good(tmp_path).read_bytes()))
    assert _read(packed)[0].tokens.tolist() == [list(ROWS.values())]


def test_counts_that_the_file_rounds_are_remarked(tmp_path: Path) -> None:
    """Above 2^24 a float32 tells whole numbers apart no longer."""
    trace, notes = _read(_write(tmp_path, {GATE.format(4): [1, 2**24 + 2]}))
    assert trace.tokens.tolist() == [[[1, 2**24 + 2]]]
    assert "layer 4, expert 1 has more than 2^24 tokens" in notes[0]


def test_fractions_stay_averages(tmp_path: Path) -> None:
    """Merging may leave fractions; they are no reason to round."""
    assert _read(_write(tmp_path, {GATE.format(0): [1, 2.5]}))[0].tokens.dtype == np.float64


HOSTILE_COUNTS: dict[str, tuple[dict[str, object], str]] = {
    "a dense model": ({"blk.0.ffn_up.weight": [7]}, "no counts of experts.*dense model"),
    "one count for all": ({GATE.format(3): [7]}, "layer 3 has one count for all experts"),
    "one count spread out": (
        {GATE.format(3): [7, 7], GATE.format(4): [8, 8]},
        "the same count, in every layer",
    ),
    "matrices that disagree": (
        {GATE.format(3): [7, 1], "blk.3.ffn_up_exps.weight": [7, 2]},
        "layer 3: blk.3.ffn_gate_exps.weight.counts and blk.3.ffn_up_exps.weight.counts differ",
    ),
    "matrices of other sizes": (
        {GATE.format(3): [7, 1], "blk.3.ffn_up_exps.weight": [7, 1, 1]},
        "layer 3: .* differ",
    ),
    "layers of other sizes": (
        {GATE.format(3): [7, 1], GATE.format(4): [7, 1, 1]},
        "layer 4 has 3 experts and layer 3 2",
    ),
    "NaN": ({GATE.format(3): [7, np.nan]}, "blk.3.* counts nan tokens for expert 1"),
    "infinity": ({GATE.format(3): [np.inf, 1]}, "counts inf tokens for expert 0"),
    "a negative count": ({GATE.format(3): [7, -2]}, "counts -2.0 tokens for expert 1"),
}


@pytest.mark.parametrize("what", HOSTILE_COUNTS)
def test_counts_that_say_nothing_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each is told with its layer."""
    counts, message = HOSTILE_COUNTS[what]
    with pytest.raises(InputError, match=message):
        _read(_write(tmp_path, counts))


def test_models_are_no_recordings(tmp_path: Path) -> None:
    """A model of this format is told from what was counted on it."""
    path = _write(tmp_path, {GATE.format(0): [1, 2]}, of="model")
    with pytest.raises(InputError, match=r"of type 'model' \(architecture llama\), not an import"):
        _read(path)


def test_counts_of_another_type_are_refused(tmp_path: Path) -> None:
    """Numbers are taken for what the file says they are, never for something else."""

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tensor(f"{GATE.format(0)}.counts", np.ones((3, 1), np.int32))
        writer.add_tensor(f"{GATE.format(1)}.counts", np.ones((2, 2), np.float32))

    with pytest.raises(InputError, match=r"shape \(1, 3\) and type 26; .*F32.* is expected"):
        _read(_write(tmp_path, {}, change=add))


def _patched(at: int, layout: str, *values: int) -> Callable[[bytes], bytes]:
    def patch(data: bytes) -> bytes:
        changed = bytearray(data)
        struct.pack_into(layout, changed, at, *values)
        return bytes(changed)

    return patch


def _head(*parts: tuple[str, object], num_tensors: int = 0, num_values: int = 1) -> bytes:
    """A file that is nothing but a head."""
    head = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, num_values)
    for layout, value in parts:
        head += value if isinstance(value, bytes) else struct.pack("<" + layout, value)
    return head + bytes(64)


_KEY = (("Q", 1), ("", b"k"))
HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "only the magic": (lambda data: data[:4], "ends in its head, at byte 4"),
    "a cut header": (lambda data: data[:20], "ends in its head, at byte 20"),
    "a cut head": (lambda data: data[:200], "claims|ends in its head"),
    "cut numbers": (lambda data: data[:-40], "ends before the 3 numbers of blk"),
    "rubbish after the magic": (lambda data: b"GGUF" + bytes(range(99, 199)), "GGUF of version"),
    "the first version": (_patched(4, "<I", 1), "GGUF of version 0x1;"),
    "the other byte order": (_patched(4, ">I", 3), "GGUF of version 0x3000000;"),
    "too many tensors": (_patched(8, "<Q", 2**60), "claims 1152921504606846976 tensors"),
    "too many values": (_patched(16, "<Q", 2**40), "claims 1099511627776 values"),
    "a name that never ends": (_patched(24, "<Q", 2**62), "claims 4611686018427387904 bytes"),
    "a list that never ends": (
        lambda _: _head(*_KEY, ("I", 9), ("I", 0), ("Q", 2**63)),
        "claims 9223372036854775808 list entries",
    ),
    "texts that never end": (
        lambda _: _head(*_KEY, ("I", 9), ("I", 8), ("Q", 2**50)),
        "claims 1125899906842624 texts",
    ),
    "lists in lists": (lambda _: _head(*_KEY, ("I", 9), ("I", 9), ("Q", 1)), "holds type 9"),
    "a value of no type": (lambda _: _head(*_KEY, ("I", 77)), "of type 77"),
    "an alignment of nothing": (
        lambda _: _head(("Q", 17), ("", b"general.alignment"), ("I", 4), ("I", 0)),
        "alignment is 0",
    ),
    "a thousand axes": (
        lambda _: _head(("Q", 1), ("", b"t"), ("I", 1000), num_tensors=1, num_values=0),
        "1000 axes",
    ),
    "a tensor twice": (
        lambda _: _head(("", bytes(24)), ("", bytes(24)), num_tensors=2, num_values=0),
        "two tensors ''",
    ),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_broken_files_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each is told at once, whatever lengths it states."""
    change, message = HOSTILE[what]
    path = _good(tmp_path)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        _read(path)


def test_every_cut_and_many_changed_bytes_are_told_or_harmless(tmp_path: Path) -> None:
    """Nothing but `InputError` comes out of a broken file."""
    path = _good(tmp_path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    broken = [data[:end] for end in range(4, len(data), 7)]
    for _ in range(300):
        changed = bytearray(data)
        for at in rng.integers(4, len(data), 3):
            changed[at] = rng.integers(256)
        broken.append(bytes(changed))
    for content in broken:
        path.write_bytes(content)
        try:
            _read(path)
        except InputError as error:
            assert str(error)

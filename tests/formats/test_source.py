"""What kind a file is, however it is packed or comes in."""

import gzip
import io
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.formats.source import Source
from eplb.formats.traces import read_trace
from eplb.trace import LoadTrace

LOADS = np.arange(3 * 4 * 600).reshape(3, 4, 600)


@contextmanager
def piped(data: bytes) -> Iterator[str]:
    """A path that gives the data once, as the shell's `<(...)` is."""
    read_end, write_end = os.pipe()

    def feed() -> None:
        with os.fdopen(write_end, "wb") as file:
            file.write(data)

    writer = threading.Thread(target=feed)
    writer.start()
    try:
        yield f"/dev/fd/{read_end}"
    finally:
        os.close(read_end)
        writer.join()


def _npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, loads=LOADS)
    return out.getvalue()


def _rows() -> str:
    return "window,layer,expert,count\n" + "".join(
        f"{w},{layer},{expert},{LOADS[w, layer, expert]}\n"
        for w, layer, expert in np.ndindex(3, 4, 600)
    )


CONTENTS = {
    "JSON": json.dumps(LOADS.tolist()).encode(),
    "NPZ": _npz(),
    "CSV": _rows().encode(),
    "packed": gzip.compress(_rows().encode()),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_pipes_are_read_once(what: str) -> None:
    """They are larger than what tells the kind, and cannot be opened again."""
    with piped(CONTENTS[what]) as path:
        trace = read_trace(path).trace
    assert isinstance(trace, LoadTrace)
    assert np.array_equal(trace.tokens, LOADS)


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    """Some programs of Windows begin every text with one."""
    path = tmp_path / "t"
    for content, kind in (("[[1, 2]]", "json"), ('{"a": 1}\n{"a": 2}\n', "jsonl")):
        path.write_text("\ufeff" + content)
        source = Source(str(path))
        assert source.kind == kind
        found = source.content if kind == "json" else [value for _, value in source.lines()]
        assert found == ([[1, 2]] if kind == "json" else [{"a": 1}, {"a": 2}])


@pytest.mark.parametrize("length", [4094, 4095, 4096, 4097, 5_000_000])
def test_json_lines_are_told_whatever_their_length(tmp_path: Path, length: int) -> None:
    """Also where the first line ends just where the bytes that tell the kind do."""
    path = tmp_path / "t"
    line = json.dumps({"a": "x" * (length - 9)})
    assert len(line) == length
    path.write_text(f"{line}\n{line}\n")
    assert Source(str(path)).kind == "jsonl"
    path.write_text(f"{line}\n")
    assert Source(str(path)).kind == "json"


def test_a_torch_file_of_nothing_is_told_so(tmp_path: Path) -> None:
    """Whatever torch raises has a message."""
    path = tmp_path / "t.pt"
    path.write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="not a readable torch file: "):
        read_trace(str(path))

"""Traces read a few windows at a time."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import InputError
from eplb.formats.blocks import read_blocks, streams
from eplb.formats.traces import write_trace
from eplb.routes import RouteTrace
from eplb.timeline import join
from eplb.trace import LoadTrace

LOADS = np.random.default_rng(0).poisson(30.0, (7, 2, 4))


@pytest.mark.parametrize("block_bytes", [1, 150, 2**25])
def test_blocks_make_up_the_trace(tmp_path: Path, block_bytes: int) -> None:
    """Whatever the size of blocks, nothing is lost or changed."""
    path = str(tmp_path / "t.npz")
    trace = LoadTrace(
        LOADS, layer_ids=np.array([3, 5]), top_k=2, model="m", window_steps=4,
        window_weight=np.arange(1.0, 8.0), scenario=np.array([0, 0, 0, 0, 0, 1, 1]),
    )  # fmt: skip
    write_trace(trace, path)
    assert streams(path)
    blocks = list(read_blocks(path, block_bytes=block_bytes))
    assert (len(blocks) == 1) == (block_bytes == 2**25)
    whole = join(blocks)
    for name in ("tokens", "layer_ids", "window_weight", "scenario"):
        assert np.array_equal(getattr(whole, name), getattr(trace, name))
    assert (whole.top_k, whole.model, whole.window_steps) == (2, "m", 4)


@pytest.mark.parametrize("weight", [(0, 0, 0, 1, 0, 0, 0), (1, 0, 0, 0, 0, 0, 1)])
def test_windows_of_no_weight_keep_their_place(tmp_path: Path, weight: tuple[int, ...]) -> None:
    """A block of nothing else goes with its neighbour, so that no window has another's number."""
    path = str(tmp_path / "t.npz")
    write_trace(LoadTrace(LOADS, window_weight=np.array(weight, float)), path)
    whole = join(list(read_blocks(path, block_bytes=1)))
    assert np.array_equal(whole.tokens, LOADS) and whole.window_weight.tolist() == list(weight)


def test_what_cannot_be_streamed_is_not(tmp_path: Path) -> None:
    """JSON and routes are read whole, by whoever asks; a pipe is not even looked into."""
    (tmp_path / "t.json").write_text("[[1, 2]]")
    assert not streams(str(tmp_path / "t.json"))
    write_trace(RouteTrace(np.zeros((2, 1, 1), int), 2), str(tmp_path / "r.npz"))
    assert not streams(str(tmp_path / "r.npz"))
    os.mkfifo(tmp_path / "pipe")
    assert not streams(str(tmp_path / "pipe"))
    assert not streams("-")


def _npz(**arrays: object) -> bytes:
    out = io.BytesIO()
    np.savez(out, **arrays)  # type: ignore[arg-type]
    return out.getvalue()


def _cut() -> bytes:
    """Loads that end before their shape says."""
    whole = io.BytesIO()
    np.save(whole, LOADS)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("loads.npy", whole.getvalue()[:-100])
    return out.getvalue()


HOSTILE = {
    "cut loads": (_cut(), "the loads end in window 5"),
    "two axes": (_npz(loads=LOADS[0]), "cannot be read in blocks"),
    "columns first": (_npz(loads=np.asfortranarray(LOADS)), "by column cannot be read in blocks"),
    "text": (_npz(loads=np.array([[["a"]]])), "cannot be read in blocks"),
    "negative": (_npz(loads=-LOADS), "cannot be negative"),
    "weights of another length": (_npz(loads=LOADS, window_weight=np.ones(2)), "window_weight has"),
    "another format": (_npz(loads=LOADS, format="other"), "the format is 'other'"),
    "both": (_npz(loads=LOADS, routes=np.zeros((1, 1, 1), int)), "both 'loads' and 'routes'"),
    "no npy": (b"", "not a readable NPZ"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_broken_files_are_named(tmp_path: Path, what: str) -> None:
    """Each with its name and what is wrong."""
    data, message = HOSTILE[what]
    path = tmp_path / "t.npz"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        list(read_blocks(str(path)))
    assert str(path) in str(caught.value)

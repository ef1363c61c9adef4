"""llama.cpp's importance matrix: how often each expert was chosen while it was computed."""

import mmap
import re
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from struct import calcsize, error, unpack_from
from typing import NamedTuple

import numpy as np

from ..._arrays import Numbers
from ...errors import InputError
from ...trace import LoadTrace
from ..source import Hints, Source

NAME = "imatrix"
DESCRIPTION = "llama.cpp importance matrix (GGUF, llama-imatrix): blk.*.ffn_*_exps.weight.counts"

_COUNTS = re.compile(r"blk\.(\d{1,6})\.ffn_(?:gate|up|down|gate_up)_exps\.weight\.counts")
_VERSIONS = (2, 3)
_ALIGNMENT = 32
_FLOAT32 = 0
# Above this a float32 no longer tells neighbouring integers apart.
_LARGEST_EXACT = 2**24
# Types of metadata values: the layout of plain ones, and the two that have a length.
_PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _ARRAY = 8, 9
# The fewest bytes that the head of a value and of a tensor take.
_LEAST_VALUE, _LEAST_TENSOR = 13, 24
_MOST_AXES = 4


class _Tensor(NamedTuple):
    """Where the head of a GGUF file says that a tensor is; `shape` has the fastest axis first."""

    shape: tuple[int, ...]
    kind: int
    offset: int


def detect(source: Source) -> bool:
    """Whether it is a GGUF file: what is no importance matrix is told so when read."""
    return source.kind == "gguf"


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The trace that the file holds, one window, and remarks on how it was read.

    Raises
    ------
    InputError
        When the file is broken, is a model, or holds no count for each expert.
    """
    layers: dict[int, dict[str, Numbers]] = {}
    for layer, name, counts in _read_counts(source):
        layers.setdefault(layer, {})[name] = counts
    if not layers:
        raise InputError(
            "it has no counts of experts (blk.*.ffn_*_exps.weight.counts): it is of a dense model,"
            " or made of an old .dat file; llama-imatrix --output-format gguf records them"
        )
    layer_ids = sorted(layers)
    rows = [_agreed(layer, layers[layer]) for layer in layer_ids]
    _check_rows(layer_ids, rows)
    tokens = np.stack(rows)
    notes = []
    if tokens.max() > _LARGEST_EXACT:
        layer, expert = np.argwhere(tokens > _LARGEST_EXACT)[0]
        notes.append(
            f"layer {layer_ids[layer]}, expert {expert} has more than 2^24 tokens; the file keeps"
            " such counts rounded, to within a ten-millionth"
        )
    if (tokens == np.floor(tokens)).all():
        tokens = tokens.astype(np.int64)
    return LoadTrace(tokens[None], layer_ids=np.array(layer_ids)), notes


def _agreed(layer: int, counts: dict[str, Numbers]) -> Numbers:
    """The counts of a layer, which every matrix of its experts repeats."""
    (first, row), *others = counts.items()
    for name, other in others:
        if not np.array_equal(row, other):
            raise InputError(
                f"layer {layer}: {first} and {name} differ; every matrix of an expert sees the"
                " same tokens, so the file is broken or merged from different models"
            )
    return row


def _check_rows(layer_ids: list[int], rows: list[Numbers]) -> None:
    """Raise `InputError` unless all layers have the same experts, counted apart."""
    for layer, row in zip(layer_ids, rows, strict=True):
        if len(row) == 1:
            raise InputError(
                f"layer {layer} has one count for all experts, as old .dat files do; record again"
                " with a newer llama-imatrix"
            )
        if len(row) != len(rows[0]):
            raise InputError(
                f"layer {layer} has {len(row)} experts and layer {layer_ids[0]} {len(rows[0])};"
                " layers with different numbers of experts are not supported"
            )
    if all((row == row[0]).all() for row in rows):
        raise InputError(
            "all experts of a layer have the same count, in every layer: one count was spread over"
            " them, as conversions of old .dat files do; record again with a newer llama-imatrix"
        )


def _read_counts(source: Source) -> Iterator[tuple[int, str, Numbers]]:
    """Layer, name and counts of every tensor of such counts, float64 of shape (E,)."""
    with _opened(source) as data:
        head = _Head(data)
        kind = head.values.get("general.type", "model")
        if kind != "imatrix":
            of = head.values.get("general.architecture", "unknown")
            raise InputError(
                f"it is a GGUF file of type {kind!r} (architecture {of}), not an importance matrix;"
                " llama-imatrix writes one, which counts the tokens of each expert"
            )
        for name, tensor in head.tensors.items():
            if match := _COUNTS.fullmatch(name):
                yield int(match[1]), name, head.floats(name, tensor)


class _Head:
    """The head of a GGUF file: values by name, as far as they are texts or plain, and tensors.

    Read here and not by the `gguf` package, which believes any length that a file states.
    """

    def __init__(self, data: "mmap.mmap | bytes") -> None:
        self._data, self._at = data, 4  # behind the magic
        (version,) = self._take("I")
        if version not in _VERSIONS:
            raise InputError(f"it is GGUF of version {version:#x}; version 2 or 3 is expected")
        num_tensors, num_values = self._take("QQ")
        self._check_room(num_values, _LEAST_VALUE, "values")
        self._check_room(num_tensors, _LEAST_TENSOR, "tensors")
        self.values = {self._text(): self._value() for _ in range(num_values)}
        self.tensors: dict[str, _Tensor] = {}
        for _ in range(num_tensors):
            name = self._text()
            if name in self.tensors:
                raise InputError(f"it has two tensors {name[:80]!r}")
            (num_axes,) = self._take("I")
            if num_axes > _MOST_AXES:
                raise InputError(f"tensor {name[:80]!r} has {num_axes} axes; 4 at most is expected")
            self.tensors[name] = _Tensor(self._take("Q" * num_axes), *self._take("IQ"))
        align = self.values.get("general.alignment", _ALIGNMENT)
        if not isinstance(align, int) or align < 1:
            raise InputError(f"its alignment is {align!r}; a number of bytes is expected")
        self._start = -(-self._at // align) * align

    def floats(self, name: str, tensor: _Tensor) -> Numbers:
        """The numbers of a tensor (1, n), as float64 of shape (n,)."""
        count = prod(tensor.shape)
        if tensor.kind != _FLOAT32 or tensor.shape[:1] != (1,) or prod(tensor.shape[1:2]) != count:
            raise InputError(
                f"{name} has shape {tensor.shape} and type {tensor.kind};"
                " (1, experts) of type 0 (F32) is expected"
            )
        first = self._start + tensor.offset
        raw = self._data[first : first + 4 * count]
        if not count or len(raw) != 4 * count:
            raise InputError(f"the file ends before the {count} numbers of {name}")
        numbers = np.frombuffer(raw, "<f4").astype(np.float64)
        wrong = ~np.isfinite(numbers) | (numbers < 0)
        if wrong.any():
            expert = int(np.argmax(wrong))
            raise InputError(
                f"{name} counts {numbers[expert]} tokens for expert {expert};"
                " a finite number of 0 or more is expected"
            )
        return numbers

    def _take(self, layout: str) -> tuple[int, ...]:
        try:
            taken = unpack_from("<" + layout, self._data, self._at)
        except error:
            raise InputError(f"the file ends in its head, at byte {len(self._data)}") from None
        self._at += calcsize("<" + layout)
        return taken

    def _text(self) -> str:
        (length,) = self._take("Q")
        self._check_room(length, 1, "bytes of a name or text")
        raw = self._data[self._at : self._at + length]
        self._at += length
        return raw.decode("utf-8", "replace")

    def _value(self) -> object:
        """The next value of the metadata; None for lists, which are passed over."""
        (kind,) = self._take("I")
        if kind == _TEXT:
            return self._text()
        if kind in _PLAIN:
            return self._take(_PLAIN[kind])[0]
        if kind != _ARRAY:
            raise InputError(f"a value of its metadata is of type {kind}, which GGUF does not have")
        kind, count = self._take("IQ")
        if kind == _TEXT:
            self._check_room(count, 8, "texts")
            for _ in range(count):
                self._text()
        elif kind in _PLAIN:
            size = calcsize("<" + _PLAIN[kind])
            self._check_room(count, size, "list entries")
            self._at += count * size
        else:
            raise InputError(f"a list of its metadata holds type {kind}; plain values are expected")
        return None

    def _check_room(self, count: int, size: int, what: str) -> None:
        """Raise `InputError` when so many things cannot be in the rest of the file."""
        left = len(self._data) - self._at
        if count * size > left:
            raise InputError(f"it claims {count} {what} and has {left} bytes left for them")


@contextmanager
def _opened(source: Source) -> "Iterator[mmap.mmap | bytes]":
    """The bytes of a file, of which only what is asked for is read where that is possible."""
    if not source.on_disk:
        yield source.data()
        return
    with (
        open(source.path, "rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
    ):
        yield mapped

"""Long tables of loads, a row for each window, layer and expert: CSV or Parquet.

CSV is read with numpy, so that a small table needs no further package; Parquet needs pyarrow.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np

from ..._arrays import Bools, Ints, Numbers
from ...errors import InputError
from ...trace import LARGEST_COUNT, LoadTrace
from .. import files
from ..source import Hints, Source
from .experts import by_expert, largest_expert
from .records import check_size

NAME = "table"
DESCRIPTION = "Table of loads: CSV or Parquet with columns window (optional), layer, expert, count"

_COLUMNS = ("window", "layer", "expert", "count")


def detect(source: Source) -> bool:
    """Whether it is Parquet, or text whose first line names two of the columns."""
    if source.kind == "parquet":
        return True
    if source.kind != "text":
        return False
    line = source.data().partition(b"\n")[0][:1000].decode("utf-8-sig", "replace")
    return sum(name.strip(' "\r') in _COLUMNS for name in line.split(",")) >= 2


def read(source: Source, hints: Hints) -> tuple[LoadTrace, list[str]]:
    """The counts by window, layer and expert, and remarks. What has no row counts 0.

    Raises
    ------
    InputError
        When columns are missing or hold the wrong kind of numbers, or a row comes twice.
    RefusedError
        When it is of another model, or its counts are of slots and the live placement is another.
    """
    notes: list[str] = []
    columns = _parquet(source, notes) if source.kind == "parquet" else _csv(source, notes)
    if not len(columns["count"]):
        raise InputError("the table has no row, only names of columns")
    layer, expert = (_whole(columns, name, least=0) for name in ("layer", "expert"))
    layer_ids, row = np.unique(layer, return_inverse=True)
    numbers, window = np.array([0]), np.zeros(len(layer), np.int64)
    if "window" in columns:
        numbers, window = np.unique(_whole(columns, "window"), return_inverse=True)
        _note_gaps(numbers, notes)
    width = int(expert.max()) + 1
    if hints.recorded_under is None:
        width = largest_expert("rows", width - 1, hints, notes)
    else:  # the experts of the table are slots
        width = max(width, hints.recorded_under.num_slots)
    shape = (len(numbers), len(layer_ids), width)
    check_size(shape, len(layer))
    flat = np.ravel_multi_index((window, row, expert), shape)
    _check_once(flat, columns)
    count = _counts(columns["count"])
    tokens = np.zeros(shape, count.dtype)
    tokens.reshape(-1)[flat] = count
    tokens.setflags(write=False)  # a trace takes a read-only array over without a copy
    if left := tokens.size - len(flat):
        notes.append(f"{left:,} of {tokens.size:,} counts have no row and are taken for 0")
    trace, remarks = by_expert(LoadTrace(tokens, layer_ids=layer_ids), hints)
    return trace, [*notes, *remarks]


def csv_text(source: Source) -> str:
    """The text of a CSV file, with a line feed behind each line.

    Raises
    ------
    InputError
        When it is no UTF-8.
    """
    try:
        text = source.data().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"byte {error.start} of {source.base} is not UTF-8; save the table as UTF-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def csv_numbers(text: str, where: str, columns: Sequence[int] | None = None) -> Numbers:
    """The numbers of some columns, or all, of lines of comma-separated values, as float64 of shape
    (rows, columns); whole numbers are exact up to 2^53.

    Raises
    ------
    InputError
        When a value is no number, or a line too short.
    """
    if not text.strip():
        return np.zeros((0, len(columns or [])))
    try:
        return np.loadtxt(
            io.StringIO(text), delimiter=",", usecols=columns, ndmin=2, comments=None, quotechar='"'
        )
    except ValueError as error:
        raise InputError(f"{where}: {_reason(str(error))}") from None


def _reason(message: str) -> str:
    """What numpy says of a table, with rows counted from 1 as it does not always."""
    row = re.search(r"at row (\d+)", message)
    value = re.search(r"convert string '(.*)' to", message)
    if row is None:
        return message
    if value is not None:
        return f"row {int(row[1]) + 1} has {value[1][:40]!r}, which is no number"
    return f"row {row[1]} has more or fewer columns than expected"


def _csv(source: Source, notes: list[str]) -> dict[str, Numbers]:
    head, _, text = csv_text(source).lstrip().partition("\n")
    try:
        names = [name.strip() for name in next(csv.reader([head]), [])]
    except csv.Error as error:
        raise InputError(f"the names of the columns cannot be read: {error}") from None
    chosen = _choose(names, notes)
    numbers = csv_numbers(text, "the table", [names.index(name) for name in chosen])
    if '"' not in text and text.count(",") != len(numbers) * (len(names) - 1):
        _check_widths(text, len(names))
    return dict(zip(chosen, numbers.T, strict=True))


def _check_widths(text: str, num_columns: int) -> None:
    """Raise `InputError` for a row with more values than columns, which numpy does not mind: a
    decimal comma makes one."""
    for row, line in enumerate(filter(str.strip, text.split("\n")), start=1):
        if (found := line.count(",") + 1) != num_columns:
            raise InputError(
                f"row {row} has {found} values and the first line {num_columns} names of columns;"
                " as many are expected"
            )


def _parquet(source: Source, notes: list[str]) -> dict[str, Numbers]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise InputError(
            "Parquet is read with pyarrow, which is not installed: pip install 'eplb[formats]'"
        ) from None
    data = source.data()
    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        chosen = _choose(file.schema_arrow.names, notes)
        rows = file.metadata.num_rows
        files.check_unpacked(len(data), 8 * rows * len(chosen), "the table")
        table = file.read(columns=chosen)
    except InputError:
        raise
    except Exception as error:  # a broken file makes pyarrow raise anything
        raise InputError(f"not a readable Parquet file: {files.reason(error)}") from None
    columns = {}
    for name in chosen:
        values = table.column(name)
        kind = values.type
        if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind)):
            raise InputError(f"column {name!r} is of type {kind}; numbers are expected")
        if values.null_count:
            raise InputError(f"column {name!r} has {values.null_count} empty values")
        columns[name] = values.to_numpy()
    return columns


def _choose(names: Sequence[str], notes: list[str]) -> list[str]:
    """Which of the columns there are, in the order of `_COLUMNS`."""
    for column in _COLUMNS:
        found = names.count(column)
        if found > 1 or (not found and column != "window"):
            raise InputError(
                f"there {'are' if found else 'is'} {found or 'no'} column {column!r}; the columns"
                f" are {', '.join(names)[:120]} and {', '.join(_COLUMNS)} (window optional) are"
                " expected"
            )
    if other := [name for name in names if name not in _COLUMNS]:
        notes.append(f"further columns were left aside: {', '.join(other)[:120]}")
    return [column for column in _COLUMNS if column in names]


def _whole(columns: Mapping[str, Numbers], name: str, least: int = -LARGEST_COUNT) -> Ints:
    """A column as int64."""
    column = columns[name]
    wrong = ~((column >= least) & (column <= LARGEST_COUNT))
    if column.dtype.kind == "f":
        wrong |= column != np.floor(column)
    if wrong.any():
        place = int(np.argmax(wrong))
        expected = "a whole number" + (f" of {least} or more" if least == 0 else "")
        raise InputError(f"row {place + 1} has {name} {column[place]}; {expected} is expected")
    return column.astype(np.int64)


def _counts(column: Numbers) -> Numbers:
    """Counts as int64, or float64 where some have a fraction."""
    wrong: Bools = ~((column >= 0) & (column <= LARGEST_COUNT))  # NaN as well
    if wrong.any():
        place = int(np.argmax(wrong))
        raise InputError(
            f"row {place + 1} has count {column[place]};"
            f" a number from 0 to 2^53 ({LARGEST_COUNT}) is expected"
        )
    if column.dtype.kind == "f" and (column != np.floor(column)).any():
        return column.astype(np.float64)
    return column.astype(np.int64)


def _check_once(flat: Ints, columns: Mapping[str, Numbers]) -> None:
    order = np.argsort(flat, kind="stable")
    again = np.flatnonzero(np.diff(flat[order]) == 0)
    if not len(again):
        return
    first, second = order[again[0]], order[again[0] + 1]
    name = ", ".join(
        f"{column} {columns[column][first]:.0f}"
        for column in ("window", "layer", "expert")
        if column in columns
    )
    raise InputError(
        f"rows {first + 1} and {second + 1} are both of {name}; one row for each is expected"
    )


def _note_gaps(numbers: Ints, notes: list[str]) -> None:
    if len(numbers) > 1 and len(set(np.diff(numbers).tolist())) > 1:
        place = int(np.argmax(np.diff(numbers) > np.diff(numbers).min()))
        notes.append(
            f"window numbers have gaps, the first after {numbers[place]};"
            " windows are taken in their order"
        )

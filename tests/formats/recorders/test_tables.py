"""Long tables of loads as CSV and Parquet."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from eplb.errors import InputError, RefusedError
from eplb.formats.recorders import tables
from eplb.formats.source import Hints, Source
from eplb.placement import Placement
from eplb.trace import LoadTrace

HEADER = "window,layer,expert,count\n"
# Window 7 comes first in the file and last in the trace; expert 1 of layer 5 has no row in it.
CSV = HEADER + "7,3,1,5\n2,3,0,1\n2,3,1,2\n2,5,0,3\n2,5,1,4\n7,3,0,6\n7,5,0,7\n"
TOKENS = [[[1, 2], [3, 4]], [[6, 5], [7, 0]]]
TAKEN = "the rows do not say how many experts there are; 2 is taken, the largest id + 1"


def columns(text: str = CSV) -> dict[str, Any]:
    """The columns of a CSV text."""
    names, *rows = (line.split(",") for line in text.split())
    return {name: [int(row[i]) for row in rows] for i, name in enumerate(names)}


def parquet_bytes(values: dict[str, Any]) -> bytes:
    """A Parquet file of columns."""
    out = io.BytesIO()
    parquet.write_table(pyarrow.table(values), out)
    return out.getvalue()


def read(
    path: Path, content: str | bytes, hints: Hints | None = None
) -> tuple[LoadTrace, list[str]]:
    """What the reader makes of a file."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = Source(str(path))
    assert tables.detect(source)
    return tables.read(source, hints or Hints())


@pytest.mark.parametrize("content", [CSV, parquet_bytes(columns())], ids=["csv", "parquet"])
def test_rows_are_windows_layers_and_experts(tmp_path: Path, content: str | bytes) -> None:
    """Windows in the order of their numbers, layers with their ids; no row is no token."""
    trace, notes = read(tmp_path / "t", content)
    assert trace.tokens.tolist() == TOKENS
    assert trace.tokens.dtype == np.int64
    assert trace.layer_ids.tolist() == [3, 5]
    assert notes == [TAKEN, "1 of 8 counts have no row and are taken for 0"]


def test_columns_stand_in_any_order(tmp_path: Path) -> None:
    """Further ones are left aside, and windows may be left out; quotes, spaces, a byte order mark
    and Windows line ends do no harm."""
    text = '﻿"count", expert ,who,layer\r\n5,0,a,"1"\r\n6,1,"b, c",1\r\n'
    trace, notes = read(tmp_path / "t.csv", text)
    assert (trace.tokens.tolist(), trace.layer_ids.tolist()) == ([[[5, 6]]], [1])
    assert notes == ["further columns were left aside: who", TAKEN]


def test_lines_may_end_as_in_old_programs(tmp_path: Path) -> None:
    """A carriage return by itself ends a line too."""
    assert read(tmp_path / "t.csv", CSV.replace("\n", "\r"))[0].tokens.tolist() == TOKENS


def test_experts_without_rows_are_known_from_the_model(tmp_path: Path) -> None:
    """Otherwise the largest id tells."""
    trace, _ = read(tmp_path / "t.csv", "layer,expert,count\n0,1,5\n", Hints(num_experts=4))
    assert trace.tokens.tolist() == [[[0, 5, 0, 0]]]


def test_averages_stay_fractions(tmp_path: Path) -> None:
    """Whole numbers written with a point are whole."""
    for count, kind in ((1.5, np.float64), (2.0, np.int64)):
        text = f"layer,expert,count\n0,0,{count}\n"
        for content in (text, parquet_bytes({"layer": [0.0], "expert": [0], "count": [count]})):
            trace, _ = read(tmp_path / "t", content)
            assert (trace.tokens.tolist(), trace.tokens.dtype) == ([[[count]]], kind)


def test_gaps_between_windows_are_noted(tmp_path: Path) -> None:
    """Windows 1, 2 and 5 are three; equal distances are none."""
    rows = "".join(f"{window},0,0,1\n" for window in (1, 2, 5))
    trace, notes = read(tmp_path / "t.csv", HEADER + rows, Hints(num_experts=1))
    assert trace.num_windows == 3
    assert notes == [
        "window numbers have gaps, the first after 2; windows are taken in their order"
    ]
    assert read(tmp_path / "t.csv", HEADER + "0,0,0,1\n9,0,0,1\n", Hints(num_experts=1))[1] == []


def test_csv_needs_no_further_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parquet does, and the message says which."""
    data = parquet_bytes(columns())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert read(tmp_path / "t.csv", CSV)[0].tokens.tolist() == TOKENS
    with pytest.raises(InputError, match=r"pip install 'eplb\[formats\]'"):
        read(tmp_path / "t.parquet", data)


def _one(**values: Any) -> bytes:
    return parquet_bytes({"layer": [0], "expert": [0], "count": [1]} | values)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "another column": ("layer,expert,tokens\n0,0,1\n", "'count'; the columns are layer, expert"),
    "no expert": ("window,layer,count\n0,0,1\n", "no column 'expert'"),
    "a column twice": ("layer,expert,count,count\n0,0,1,1\n", "are 2 column 'count'"),
    "a header only": (HEADER, "no row, only names of columns"),
    "a row twice": (HEADER + "0,0,1,1\n0,0,0,1\n0,0,1,1\n", "rows 1 and 3 are both of window 0"),
    "text": (HEADER + "0,0,0,many\n", "row 1 has 'many', which is no number"),
    "nothing": (HEADER + "0,0,0,\n", "row 1 has '', which is no number"),
    "a short row": (HEADER + "0,0,0,1\n0,0,1\n", "the table: row 2 has more or fewer columns"),
    "a decimal comma": ("layer,expert,count\n0,0,1,5\n", "row 1 has 4 values and .* 3 names"),
    "a head cut by a quote": (f'layer,expert,count,"{"x" * 2**18}\n', "names of the columns"),
    "NaN": (HEADER + "0,0,0,NaN\n", "row 1 has count nan"),
    "infinity": (HEADER + "0,0,0,inf\n", "row 1 has count inf"),
    "a negative count": (HEADER + "0,0,0,1\n0,0,1,-1\n", "row 2 has count -1"),
    "a count above 2^53": (HEADER + "0,0,0,9007199254740994\n", "row 1 has count"),
    "a fractional expert": (HEADER + "0,0,0.5,1\n", "row 1 has expert 0.5; a whole number of 0"),
    "a fractional window": (HEADER + "0.5,0,0,1\n", "row 1 has window 0.5; a whole number is"),
    "a negative layer": (HEADER + "0,-1,0,1\n", "row 1 has layer -1"),
    "a negative expert": (HEADER + "0,0,-1,1\n", "row 1 has expert -1"),
    "a layer of NaN": (HEADER + "0,nan,0,1\n", "row 1 has layer nan"),
    "a window of infinity": (HEADER + "-inf,0,0,1\n", "row 1 has window -inf"),
    "an expert that fills memory": (HEADER + f"0,0,{2**40},1\n", "expert 1099511627776 is named"),
    "experts beyond numbers": (HEADER + f"0,0,{2**70},1\n", "row 1 has expert 1.18"),
    "few rows of many counts": (
        HEADER + "".join(f"{i},{i},{999_000 + i},1\n" for i in range(30)),
        "30 windows × 30 layers × 999030 experts are 899,127,000 counts.*names 30",
    ),
    "other encoding": ("layer,expert,count,é\n0,0,1,2\n".encode("latin-1"), "byte 19.*not UTF-8"),
    "Parquet without counts": (parquet_bytes({"layer": [0], "expert": [0]}), "no column 'count'"),
    "Parquet of text": (_one(count=["1"]), "'count' is of type string; numbers"),
    "Parquet of truth": (_one(expert=[True]), "'expert' is of type bool; numbers"),
    "Parquet with holes": (_one(count=pyarrow.array([None], pyarrow.int64())), "1 empty values"),
    "Parquet of fractions": (_one(layer=[0.5]), "row 1 has layer 0.5"),
    "Parquet of huge experts": (_one(expert=np.array([2**64 - 1], np.uint64)), "has expert 18"),
    "Parquet without rows": (_one(layer=[], expert=[], count=pyarrow.array([], "int64")),
                             "no row|type null"),
    "half of Parquet": (parquet_bytes(columns())[:-20], "not a readable Parquet file"),
    "the head of Parquet": (b"PAR1", "not a readable Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tables_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so."""
    content, message = HOSTILE[what]
    with pytest.raises(InputError, match=message):
        read(tmp_path / "t", content)


def test_experts_above_those_of_the_model_are_refused(tmp_path: Path) -> None:
    """The recording is of another model."""
    with pytest.raises(RefusedError, match=r"name expert 1; ids from 0 to 0 .* another model"):
        read(tmp_path / "t", CSV, Hints(num_experts=1))


def test_slots_are_folded_under_the_live_placement(tmp_path: Path) -> None:
    """Where it is given, the experts of the table are slots; the last may have no row."""
    live = Placement(np.array([[1, 0, 1, 0]]), 2, num_ranks=2)
    text = "layer,expert,count\n3,0,5\n3,1,6\n3,2,7\n"
    trace, notes = read(tmp_path / "t", text, Hints(recorded_under=live))
    assert trace.tokens.tolist() == [[[6, 12]]]
    assert "counts of 4 slots are folded to 2 experts" in notes[-1]
    with pytest.raises(RefusedError, match=r"5 counts a layer, and the placement .* 4 slots"):
        read(tmp_path / "t", text + "3,4,7\n", Hints(recorded_under=live))


def test_parquet_that_unpacks_to_far_more_is_refused(tmp_path: Path) -> None:
    """A column of one number takes no place in a file and much in memory."""
    zeros = np.zeros(12_000_000, np.int8)
    data = parquet_bytes({"layer": zeros, "expert": zeros, "count": zeros})
    with pytest.raises(InputError, match="unpacks to more than"):
        read(tmp_path / "t", data)


@pytest.mark.parametrize("content", ["", "{}", "a,b\n", "count\n1\n", "layer_id,expert_id,count\n"])
def test_foreign_files_are_left_alone(tmp_path: Path, content: str) -> None:
    """They are for other readers."""
    path = tmp_path / "t"
    path.write_text(content)
    assert not tables.detect(Source(str(path)))

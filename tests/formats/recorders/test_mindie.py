"""Folders of expert loads that MindIE dumps."""

import json
from pathlib import Path

import numpy as np
import pytest

from eplb.errors import EplbError, InputError, RefusedError
from eplb.formats.recorders import mindie
from eplb.formats.source import Hints, Source
from eplb.model import Model
from eplb.placement import Placement
from eplb.trace import LoadTrace

MODEL = Model("tiny", num_layers=3, moe_layer_ids=(1, 2), num_experts=4, mtp_layer_ids=(3,))
CONFIG = {
    "num_moe_layers": 2,
    "collection_Interval": 8,
    "num_of_experts": 4,
    "num_of_selected_experts": [2],
}
FOUR = Hints(num_experts=4)
# Two matrices of two layers: running totals of the two experts on each of two ranks.
RANKS = ["1,2\n3,4\n11,2\n3,24\n", "5,6\n7,8\n5,36\n7,48\n"]
TOKENS = [[[1, 2, 5, 6], [3, 4, 7, 8]], [[10, 0, 0, 30], [0, 20, 0, 40]]]


def folder(path: Path, files: list[str] | dict[str, str | bytes], config: object = CONFIG) -> str:
    """A folder of decode files by rank, or of files by name, and a configuration if any."""
    if isinstance(files, list):
        files = {f"decode_{rank}.csv": text for rank, text in enumerate(files)}
    for name, text in files.items():
        (path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    if config is not None:
        (path / "model_gen_config.json").write_text(json.dumps(config))
    return str(path)


def read(path: str, hints: Hints | None = None) -> tuple[LoadTrace, list[str]]:
    """What the reader makes of it."""
    source = Source(path)
    assert mindie.detect(source)
    return mindie.read(source, hints or Hints())


def test_windows_are_differences_of_running_totals(tmp_path: Path) -> None:
    """The columns of the ranks stand beside each other; the configuration has the sizes."""
    trace, notes = read(folder(tmp_path, RANKS), Hints(model=MODEL))
    assert trace.tokens.tolist() == TOKENS
    assert (trace.phase, trace.top_k, trace.window_steps, notes) == ("decode", 2, 8, [])


def test_other_files_of_the_folder_are_left_aside(tmp_path: Path) -> None:
    """Routes and copies of the files lie beside them; ranks are numbers, not words."""
    files: dict[str, str | bytes] = {f"prefill_{rank}.csv": f"{rank}\n" for rank in range(11)}
    files |= {"prefill_topk_0.csv": "9\n", "prefill_0_bak.csv": "9\n", "other.csv": "a"}
    trace, notes = read(folder(tmp_path, files, config=None), Hints(num_experts=11))
    assert trace.tokens.tolist() == [[list(range(11))]]
    assert (trace.phase, trace.window_steps) == ("prefill", None)
    assert "expert 0 may count padding" in notes[-1]


def test_older_folders_have_no_configuration(tmp_path: Path) -> None:
    """Each file is one matrix then, or several where the model says how many layers it has."""
    path = folder(tmp_path, RANKS, config=None)
    assert read(path, FOUR)[0].tokens.shape == (1, 4, 4)
    assert read(path, Hints(model=MODEL))[0].tokens.tolist() == TOKENS


def test_rows_may_end_with_the_layer_that_predicts_several_tokens(tmp_path: Path) -> None:
    """It is the last of each matrix where the number of rows says so."""
    path = folder(tmp_path, ["1,2,3,4\n" * 3], config=None)
    assert read(path, Hints(model=MODEL))[0].tokens.shape == (1, 3, 4)


def test_one_rank_alone_has_all_experts(tmp_path: Path) -> None:
    """So does each of several whose files are as wide as the layer."""
    trace, notes = read(folder(tmp_path, ["1,2\n"], config=None))
    assert (trace.tokens.tolist(), notes[1]) == (
        [[[1, 2]]],
        "2 experts are taken, as many as the one rank counts",
    )
    trace, notes = read(folder(tmp_path, ["1,2\n", "3,4\n"], config=None), Hints(num_experts=2))
    assert trace.tokens.tolist() == [[[4, 6]]]
    assert notes[1] == "each rank counts all 2 experts; ranks are summed"


def test_unfinished_matrices_are_cut(tmp_path: Path) -> None:
    """A server that is stopped leaves files of different length."""
    trace, notes = read(folder(tmp_path, [RANKS[0], RANKS[1] + "6,40\n"]), Hints(model=MODEL))
    assert trace.tokens.tolist() == TOKENS
    assert notes == ["files have 4 to 5 rows; 2 whole matrices of 2 rows are read of each"]


def test_ranks_of_shared_experts_are_left_aside(tmp_path: Path) -> None:
    """They are the first ones and hold no routed expert."""
    config = CONFIG | {"num_dangling_shared_experts": 1}
    trace, notes = read(folder(tmp_path, ["9\n9\n9\n9\n", *RANKS], config))
    assert trace.tokens.tolist() == TOKENS
    assert notes[0] == "the first 1 ranks hold shared experts: left aside"


def test_columns_of_a_map_are_slots(tmp_path: Path) -> None:
    """Copies of an expert add up under the plan that was live."""
    config = CONFIG | {"eplb_expert_map_file": "map.json"}
    path = folder(tmp_path, ["1,2,3\n1,2,3\n", "4,5,6\n4,5,6\n"], config)
    live = Placement(np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 3, 3]]), 4, num_ranks=2)
    trace, _ = read(path, Hints(recorded_under=live))
    assert trace.tokens.tolist() == [[[6, 8, 3, 4], [4, 3, 2, 12]]]
    with pytest.raises(InputError, match="columns are slots: --recorded-under"):
        read(path)
    with pytest.raises(RefusedError, match="has 2 layers and the placement recorded under 1;"):
        read(path, Hints(recorded_under=Placement(live.physical_to_logical[:1], 4, 2)))


def test_columns_are_slots_of_a_live_plan_without_copies(tmp_path: Path) -> None:
    """As many slots as experts do not mean that each expert is in the slot of its number."""
    live = Placement(np.array([[1, 0, 3, 2], [0, 1, 2, 3]]), 4, num_ranks=2)
    trace, notes = read(folder(tmp_path, RANKS), Hints(recorded_under=live))
    assert trace.tokens.tolist() == [[[2, 1, 6, 5], [3, 4, 7, 8]], [[0, 10, 30, 0], [0, 20, 0, 40]]]
    assert "counts of 4 slots are folded to 4 experts" in "".join(notes)


def test_load_in_a_slot_without_expert_is_refused(tmp_path: Path) -> None:
    """A rank that was excluded counts nothing, so the plan was another."""
    live = Placement(np.array([[0, 1, 2, 3, -1, -1]] * 2), 4, 3, excluded_ranks=(2,))
    path = folder(tmp_path, [*RANKS, "1,0\n0,0\n1,0\n0,0\n"])
    with pytest.raises(RefusedError, match="slot 4 has load in layer 0"):
        read(path, Hints(recorded_under=live))


def test_many_matrices_are_summed(tmp_path: Path) -> None:
    """Into at most 128 windows, or as many steps as asked for."""
    text = "".join(f"{i},0,0,1\n0,0,{i},1\n" for i in range(1, 301))
    path = folder(tmp_path, [text])
    trace, notes = read(path, Hints(model=MODEL))
    assert (trace.num_windows, trace.window_steps) == (100, 24)
    assert trace.tokens[1].tolist() == [[3, 0, 0, 0], [0, 0, 3, 0]]
    assert notes == ["300 matrices are summed into 100 windows of 24 steps; --window-steps chooses"]
    assert read(path, Hints(model=MODEL, window_steps=800))[0].num_windows == 3
    with pytest.raises(InputError, match="windows of 8 steps do not add up to 12"):
        read(path, Hints(model=MODEL, window_steps=12))


BOTH: dict[str, str | bytes] = {"decode_0.csv": "1\n", "prefill_0.csv": "1\n"}
HOSTILE: dict[str, tuple[list[str] | dict[str, str | bytes], object, Hints, str]] = {
    "both phases": (BOTH, None, FOUR, "prefill and decode are both.*--scenario"),
    "a rank missing": ({"decode_1.csv": "1\n"}, None, FOUR, "decode_0.csv is missing and decode_1"),
    "no experts known": (RANKS, None, Hints(), "2 ranks count 4 experts in all.*--model"),
    "too few columns": (RANKS[:1], CONFIG, FOUR, "1 ranks count 2 experts in all and a layer"),
    "a header": (["expert_0,expert_1\n1,2\n"], None, FOUR, "decode_0.csv: row 1 has 'expert_0'"),
    "text": (["1,2\n3,x\n"], None, FOUR, "decode_0.csv: row 2 has 'x', which is no number"),
    "ragged rows": (["1,2\n3\n"], None, FOUR, "decode_0.csv: row 2 has more or fewer"),
    "an empty file": ([""], CONFIG, FOUR, "decode_0.csv is empty"),
    "an empty file without configuration": ([""], None, FOUR, "decode_0.csv is empty"),
    "half a matrix": (["1,2,3,4\n"], CONFIG, FOUR, "1 rows, less than the 2 layers"),
    "ranks of different length": (["1,2\n", "1,2\n" * 2], None, FOUR, "1 rows and decode_1.csv 2"),
    "rows of other layers": (["1,2,3,4\n" * 5], None, Hints(model=MODEL), "5 rows are not a whole"),
    "totals that fall": (["5,2,3,4\n" * 2 + "4,2,3,4\n" * 2], CONFIG, FOUR,
                         "decode_0.csv: the total of layer 0, column 1 falls from 5 to 4"),
    "a negative count": (["1,-2,3,4\n" * 2], CONFIG, FOUR, "decode_0.csv, row 1, column 2 is -2"),
    "a fractional count": (["1,2,3,4\n1,2.5,3,4\n"], CONFIG, FOUR, "row 2, column 2 is 2.5"),
    "NaN": (["1,nan,3,4\n" * 2], CONFIG, FOUR, "column 2 is nan"),
    "infinity": (["1,inf,3,4\n" * 2], CONFIG, FOUR, "column 2 is inf"),
    "no UTF-8": ({"decode_0.csv": b"1,\xff\n"}, None, FOUR, "byte 2 of decode_0.csv is not"),
    "a configuration without layers": (RANKS, {"num_of_experts": 4}, FOUR, "'num_moe_layers' is"),
    "a configuration that is a list": (RANKS, [1], FOUR, "model_gen_config.json is no JSON object"),
    "an interval of text": (RANKS, CONFIG | {"collection_Interval": "8"}, FOUR, "Interval' is '8'"),
    "shared ranks of text": (RANKS, CONFIG | {"num_dangling_shared_experts": "a"}, FOUR,
                             "'num_dangling_shared_experts' is 'a'"),
    "shared ranks only": (RANKS, CONFIG | {"num_dangling_shared_experts": 2}, FOUR, "no rank"),
    "another model": (RANKS, CONFIG | {"num_of_experts": 8}, FOUR, "says 8 experts and the model"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_folders_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so."""
    files, config, hints, message = HOSTILE[what]
    with pytest.raises(EplbError, match=message):
        read(folder(tmp_path, files, config), hints)


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    """A file of such a name alone is no folder."""
    assert not mindie.detect(Source(str(tmp_path)))
    (tmp_path / "prefill_x.csv").write_text("1\n")
    assert not mindie.detect(Source(str(tmp_path)))
    assert not mindie.detect(Source(str(tmp_path / "prefill_x.csv")))

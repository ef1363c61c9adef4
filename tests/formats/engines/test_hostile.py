"""Files that are no engine's map, or break one rule of it."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eplb.errors import EplbError, InfeasibleError, InputError
from eplb.formats.maps import import_map


def _sglang(rows: Any, **more: Any) -> str:
    return json.dumps({"physical_to_logical_map": rows, **more})


def _yaml(layers: str, rest: str = "num_slots: 4\n") -> str:
    return f"initial_global_assignments: {layers}\n{rest}"


def _record(**changed: Any) -> str:
    record = {
        "record_type": "eplb_initial_mapping", "version": 1, "num_redundant_experts": 1,
        "num_slots": 4, "initial_global_assignments": {"0": [0, 1, 2, 0]},
    }  # fmt: skip
    return json.dumps({**record, **changed})


def _ascend(layers: Any, count: Any = 1) -> str:
    return json.dumps({"moe_layer_count": count, "layer_list": layers})


def _devices(*slots: Any) -> dict[str, Any]:
    return {"device_list": [{"device_expert": own} for own in slots]}


def _npz(**arrays: Any) -> bytes:
    out = io.BytesIO()
    np.savez(out, **{key: np.array(value) for key, value in arrays.items()})
    return out.getvalue()


def _torch(**values: Any) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(values, out)
    return out.getvalue()


def _nested(depth: int) -> str:
    """YAML of a few hundred bytes whose last list has 9 to the power of `depth` numbers."""
    lines = ["- &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "num_slots:\n" + "\n".join(lines) + "\n"


GOOD = [0, 1, 2, 0]
THOUSANDS = "0x" + "f" * 5000  # digits that Python reads and does not write
HOSTILE: dict[str, tuple[str, str | bytes, str]] = {
    "nothing": ("sglang", "", "it is empty"),
    "an inline word": ("sglang", "trivial", "this is text"),
    "recorded loads": ("sglang", '{"logical_count": [[1]]}', "`eplb plan` reads those"),
    "another key": ("sglang", '{"map": []}', "no 'physical_to_logical_map'"),
    "one key too many": ("sglang", _sglang([GOOD], rank=0), "a key 'rank' too"),
    "no rows": ("sglang", _sglang([]), "it has no rows"),
    "a map that is a number": ("sglang", _sglang(7), "'physical_to_logical_map' is 7"),
    "a flat list": ("sglang", _sglang(GOOD), "layer 0 is 0; a list of expert ids"),
    "an empty row": ("sglang", _sglang([[]]), r"layer 0 is \[\]"),
    "ragged rows": ("sglang", _sglang([GOOD, [0, 1]]), "layer 1 has 2 slots and layer 0 4"),
    "fractions": ("sglang", _sglang([[0, 1.0]]), "layer 0, slot 1: 1.0 is no expert"),
    "truths": ("sglang", _sglang([[0, True]]), "layer 0, slot 1: True is no expert"),
    "words": ("sglang", _sglang([["a"]]), "layer 0, slot 0: 'a' is no expert"),
    "empty slots": ("sglang", _sglang([[0, -1]]), "slot 1: −1, an empty slot"),
    "negative ids": ("sglang", _sglang([[0, -7]]), "-7 is no expert"),
    "ids beyond the slots": ("sglang", _sglang([[0, 4, 1, 2]]), "4 slots cannot hold all of"),
    "astronomic ids": ("sglang", _sglang([[0, 2**60]]), "cannot hold all of experts"),
    "a missing expert": ("sglang", _sglang([GOOD, [0, 1, 1, 0]]), "layer 1 has no slot for"),
    "a broken torch file": ("sglang", b"\x80\x02broken", "not a readable torch file|pickle"),
    "broken JSON": ("sglang", '{"physical_to_logical_map": [[0,]]}', "not valid JSON"),
    "a plan": ("sglang", '{"format": "eplb-plan"}', "it is a plan"),
    "no assignments": ("trtllm", "num_slots: 4\n", "no 'initial_global_assignments'"),
    "assignments as a list": ("trtllm", _yaml("[[0, 1]]"), "that is a mapping"),
    "keys of text": ("trtllm", _yaml("{'3': [0, 1, 2, 0]}"), "has the key '3'"),
    "negative keys": ("trtllm", _yaml("{-3: [0, 1, 2, 0]}"), "has the key -3"),
    "keys that are truths": ("trtllm", _yaml("{yes: [0, 1, 2, 0]}"), "has the key True"),
    "no layers": ("trtllm", _yaml("{}"), "it has no rows"),
    "a layer twice": ("trtllm", _yaml("{3: [0, 1, 2, 0], 3: [0, 1, 2, 1]}"), "3 stands twice"),
    "a layer twice in other digits": (
        "trtllm", _yaml("{3: [0, 1, 2, 0], 0x3: [0, 1, 2, 1]}"), "key 3 stands twice"
    ),
    "a list in lists without end": (
        "trtllm", _nested(12) + "initial_global_assignments: {3: [0]}\n", r"'num_slots' is \[\[1, 1"
    ),
    "a layer beyond all numbers": (
        "trtllm", _yaml(f"{{? 0x{'f' * 50} : [0]}}"), "has the key 16069"
    ),
    "an expert beyond all numbers": (
        "trtllm", _yaml("{3: [0, 1" + "0" * 400 + "]}"), "expert 1000.*expected nowhere"
    ),
    "an expert of thousands of digits": (
        "trtllm", _yaml(f"{{3: [0, {THOUSANDS}]}}"), "number of thousands of digits is expected"
    ),
    "thousands of digits below 0": (
        "trtllm", _yaml(f"{{3: [0, -{THOUSANDS}]}}"), "number of thousands of digits is no expert"
    ),
    "num_slots of thousands of digits": (
        "trtllm", _yaml("{3: [0]}", f"num_slots: {THOUSANDS}\n"), "thousands of digits and layers"
    ),
    "a key twice": ("trtllm", _yaml("{3: [0]}", "num_slots: 4\nnum_slots: 1\n"), "stands twice"),
    "no num_slots": ("trtllm", _yaml("{3: [0, 1, 2, 0]}", ""), "'num_slots' is None"),
    "no GPUs": ("trtllm", _yaml("{3: [0]}", "num_slots: 1\nep_size: 0\n"), "'ep_size' is 0"),
    "other num_slots": ("trtllm", _yaml("{3: [0, 1]}"), "'num_slots' is 4 and layers have 2"),
    "an unknown key": ("trtllm", _yaml("{3: [0]}", "num_slots: 1\nfast: 1\n"), "key 'fast'"),
    "tabs": ("trtllm", "a:\n\t- b", "it is no YAML"),
    "an impossible date": ("trtllm", "a: 2024-99-99", "it is no YAML"),
    "depth without end": ("trtllm", "[" * 100_000, "it is no YAML|not valid JSON"),
    "foreign tags": ("trtllm", "!!python/object:os.system {}", "it is no YAML"),
    "one row for all": ("vllm", "[0, 1, 2, 0]", "one list of experts, for all layers"),
    "load records": ("vllm", '{"record_type": "eplb_load_stats"}', "0 records of type"),
    "a later record": ("vllm", _record(version=2), "version 2; 1 is expected"),
    "absolute keys": (
        "vllm", _record(initial_global_assignments={"3": GOOD}), "from '0' to '0'"
    ),
    "no mapping": ("vllm", _record(initial_global_assignments=[GOOD]), "maps ordinals"),
    "other slots": ("vllm", _record(num_slots=5), "'num_slots' is 5 and rows have 4"),
    "other redundancy": ("vllm", _record(num_redundant_experts=2), "is 2 and rows have 4 slots"),
    "no layer_list": ("vllm-ascend", "{}", "no 'layer_list'"),
    "another count": ("vllm-ascend", _ascend([_devices([0])], 2), "'moe_layer_count' is 2"),
    "no devices": ("vllm-ascend", _ascend([{"layer_id": 0}]), r"layer_list\[0\] has no 'device_l"),
    "a layer that is a list": ("vllm-ascend", _ascend([[0]]), r"layer_list\[0\] has no"),
    "no device_expert": (
        "vllm-ascend", _ascend([{"device_list": [{}]}]), r"device_list\[0\] has no list"
    ),
    "ragged devices": ("vllm-ascend", _ascend([_devices([0, 1], [2])]), r"\[1\] has 1 experts"),
    "devices that vanish": (
        "vllm-ascend", _ascend([_devices([0], [1]), _devices([0, 1])], 2), "has 1 devices and"
    ),
    "another device_count": (
        "vllm-ascend", _ascend([{"device_count": 3, **_devices([0])}]), "'device_count' is 3"
    ),
    "arrays without phy2log": ("deepseek", _npz(logcnt=[[1]]), "no array 'phy2log'"),
    "a phy2log of one axis": ("deepseek", _npz(phy2log=[0, 1]), r"'phy2log' is of shape \(2,\)"),
    "a phy2log of fractions": ("deepseek", _npz(phy2log=[[0.0, 1.0]]), "0.0 is no expert"),
    "another logcnt": (
        "deepseek", _npz(phy2log=[[0, 1]], logcnt=[[2, 1]]), "'logcnt' does not count"
    ),
    "ragged logcnt": (
        "deepseek", _torch(phy2log=[[0, 1]], logcnt=[[1], []]), "'logcnt' is .* an array is"
    ),
    "ragged log2phy": (
        "deepseek", _torch(phy2log=[[0, 1]], log2phy=[[1], []]), "'log2phy' is .* an array is"
    ),
    "ragged layer_ids": (
        "deepseek", _torch(phy2log=[[0, 1]], layer_ids=[[1], []]), "'layer_ids' is .* an array is"
    ),
    "a layer below 0": (
        "deepseek", _npz(phy2log=[[0, 1]], layer_ids=[-5]), "'layer_ids' has -5, which is no layer"
    ),
    "a layer beyond all": (
        "deepseek", _npz(phy2log=[[0, 1]], layer_ids=np.array([2**63], np.uint64)),
        "'layer_ids' has 9223372036854775808, which is no layer",
    ),
    "another log2phy": (
        "deepseek", _npz(phy2log=[[0, 1]], log2phy=[[[1], [0]]]), "'log2phy' names other slots"
    ),
    "log2phy out of range": (
        "deepseek", _npz(phy2log=[[0, 1]], log2phy=[[[0], [9]]]), "'log2phy' names other slots"
    ),
    "layer_ids of other length": (
        "deepseek", _npz(phy2log=[[0, 1]], layer_ids=[1, 2]), "one whole number for each of the 1"
    ),
    "layer_ids twice": (
        "deepseek", _npz(phy2log=[[0, 1], [0, 1]], layer_ids=[1, 1]), "names a layer twice"
    ),
    "JSON": ("deepseek", "[[0, 1]]", "an NPZ, NPY or torch file"),
    "a cut gzip": ("vllm", gzip.compress(b"[[0]]")[:12], "not a whole gzip file"),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_maps_get_a_clear_message(tmp_path: Path, what: str) -> None:
    """Each breaks one rule and is told so, with the file's name."""
    engine, content, message = HOSTILE[what]
    path = tmp_path / "map"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        import_map(str(path), engine, 1)
    assert str(caught.value).startswith(str(path))


def test_folders_and_missing_files(tmp_path: Path) -> None:
    """Named, with what was expected."""
    with pytest.raises(InputError, match="this is folder"):
        import_map(str(tmp_path), "vllm", 1)
    with pytest.raises(EplbError, match="none cannot be read"):
        import_map(str(tmp_path / "none"), "vllm", 1)


def test_sizes_that_do_not_fit(tmp_path: Path) -> None:
    """Slots over GPUs, GPUs over nodes, and no number of GPUs at all."""
    path = tmp_path / "m.json"
    path.write_text("[[0, 1, 2, 0]]")
    with pytest.raises(InfeasibleError, match="4 slots do not divide over 3 ranks"):
        import_map(str(path), "vllm", 3)
    with pytest.raises(InfeasibleError, match="2 ranks do not divide over 3 nodes"):
        import_map(str(path), "vllm", 2, 3)
    with pytest.raises(InputError, match="--gpus does"):
        import_map(str(path), "vllm")

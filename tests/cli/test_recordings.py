"""From an engine's recording to the map it starts with, as a stranger would do it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from eplb.formats.maps import ENGINES
from eplb.formats.plans import read_plan

from ..helpers import eplb

# A model of one dense layer, three with experts, and one that predicts further tokens.
CONFIG = {
    "model_type": "deepseek_v3", "num_hidden_layers": 4, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "n_shared_experts": 1, "num_nextn_predict_layers": 1, "hidden_size": 32,
    "moe_intermediate_size": 16, "torch_dtype": "bfloat16",
}  # fmt: skip
LOADS = np.random.default_rng(3).poisson(40.0, (12, 3, 8))
ENDINGS = {"trtllm": "yaml", "deepseek": "npz"}


def _sglang(folder: Path) -> None:
    """Counts of passes by slot, half of them on each of two ranks; layer 0 is dense."""
    slots = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 0, 1]] * 4)
    for rank in range(2):
        records = []
        for index, window in enumerate(LOADS):
            counts = torch.zeros(4, 10, dtype=torch.int32)
            own = window // 2 + (window % 2) * rank
            counts[1:, :8] = torch.from_numpy(own.astype(np.int32))
            # Some tokens of experts 0 and 1 went to their second copies.
            counts[1:, 8:] = counts[1:, :2] // 3
            counts[1:, :2] -= counts[1:, 8:]
            records.append({
                "forward_pass_id": 7 + index, "rank": rank, "gatherer_key": "primary",
                "global_physical_count": counts,
            })  # fmt: skip
        dump = {"records": records, "last_physical_to_logical_map": slots}
        torch.save(dump, folder / f"expert_distribution_recorder_1767225600.5_{rank}.pt")


def _trtllm(folder: Path) -> None:
    """Counts by iteration and layer on two ranks."""
    meta = {"num_experts": 8, "num_experts_per_token": 2}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    for rank in range(2):
        tensors = {
            f"{100 + index}_{layer + 1}": row // 2 + (row % 2) * rank
            for index, window in enumerate(LOADS)
            for layer, row in enumerate(window.astype(np.int64))
        }
        save_file(tensors, folder / f"rank{rank}.safetensors")


def _table(folder: Path) -> None:
    lines = ["window,layer,expert,count"]
    for (window, layer, expert), count in np.ndenumerate(LOADS):
        lines.append(f"{window},{layer + 1},{expert},{count}")
    (folder / "loads.csv").write_text("\n".join(lines))


def _vllm(folder: Path) -> None:
    """Loads by slot; rows are layers with experts only."""
    record: dict[str, Any] = {
        "record_type": "eplb_load_stats", "version": 1, "num_ranks": 2,
        "p2l_map": [[7, 6, 5, 4, 3, 2, 1, 0]] * 3,
    }  # fmt: skip
    lines = [
        json.dumps({**record, "step": 100 * step, "expert_load": window[:, ::-1].tolist()})
        for step, window in enumerate(LOADS)
    ]
    (folder / "loads.jsonl").write_text("\n".join(lines))


RECORDINGS = {
    "sglang": (_sglang, ""),
    "trtllm": (_trtllm, ""),
    "table": (_table, "loads.csv"),
    "vllm": (_vllm, "loads.jsonl"),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_becomes_the_map_of_any_engine(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same loads, by whatever engine, give the same plan; every engine's map of it reads back
    as the same placement of the model's own layers."""
    monkeypatch.chdir(tmp_path)
    record, file = RECORDINGS[name]
    Path("recording").mkdir()
    record(Path("recording"))
    Path("config.json").write_text(json.dumps(CONFIG))
    np.savez("same.npz", loads=LOADS, layer_ids=[1, 2, 3])
    model = ["--model", "config.json"]
    recording = f"recording/{file}"

    inspected = json.loads(eplb("inspect", recording, *model, "--json").out)["traces"][0]
    assert (inspected["format"], inspected["moe_layers"]) == (name, 3)
    assert inspected["assignments_a_window"] == pytest.approx(LOADS.sum(axis=2).mean())

    for trace, plan in ((recording, "plan.json"), ("same.npz", "same.json")):
        done = eplb("plan", trace, "--gpus", "4", "--redundant", "4", *model, "-o", plan)
        assert done.code == 0, done.err
    assert eplb("diff", "plan.json", "same.json").code == 0
    assert read_plan("plan.json").layer_ids.tolist() == [1, 2, 3]
    assert read_plan("plan.json").options["expert_bytes"] == 3 * 32 * 16 * 2

    for engine in ENGINES:
        target = f"map.{ENDINGS.get(engine, 'json')}"
        done = eplb("export", "plan.json", "--to", engine, *model, "-o", target, "--force")
        assert done.code == 0, done.err
        done = eplb(
            "import", target, "--from", engine, "--gpus", "4", "--layers", "1:4", "-o", "back.json",
            "--force",
        )  # fmt: skip
        assert done.code == 0, done.err
        assert eplb("diff", "plan.json", "back.json").code == 0
        back = read_plan("back.json").placement.physical_to_logical
        assert np.array_equal(back, read_plan("plan.json").placement.physical_to_logical)


def test_counts_by_slot_need_the_plan_that_was_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-LLM counts slots once a balancer is active: refused, until it is told under what."""
    monkeypatch.chdir(tmp_path)
    Path("config.json").write_text(json.dumps(CONFIG))
    np.savez("loads.npz", loads=LOADS, layer_ids=[1, 2, 3])
    live = ("plan", "loads.npz", "--gpus", "2", "--redundant", "2", "-o", "live.json")
    assert eplb(*live).code == 0
    placement = read_plan("live.json").placement
    copies = np.take_along_axis(placement.replica_count, placement.physical_to_logical, axis=1)
    Path("stats").mkdir()
    meta = {"num_experts": 10, "num_experts_per_token": 2}
    Path("stats/meta_info.json").write_text(json.dumps(meta))
    # Twelve times the loads, so that every number of copies shares them evenly.
    on_slots = np.take_along_axis(LOADS * 12, placement.physical_to_logical[None], axis=2) // copies
    tensors = {
        f"{index}_{layer + 1}": np.ascontiguousarray(row)
        for index, window in enumerate(on_slots)
        for layer, row in enumerate(window)
    }
    save_file(tensors, "stats/rank0.safetensors")

    refused = eplb("inspect", "stats", "--model", "config.json")
    assert refused.code == 4 and "--recorded-under" in refused.err
    told = eplb(
        "inspect", "stats", "--model", "config.json", "--recorded-under", "live.json", "--json"
    )
    found = json.loads(told.out)["traces"][0]
    assert found["num_experts"] == 8
    assert found["assignments_a_window"] == pytest.approx(LOADS.sum(axis=2).mean() * 12)


def test_steps_add_up_to_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """--window-steps sums recordings by pass, and native traces that say their steps."""
    monkeypatch.chdir(tmp_path)
    Path("recording").mkdir()
    _sglang(Path("recording"))
    np.savez("loads.npz", loads=LOADS, window_steps=1)
    for trace in ("recording", "loads.npz"):
        for steps, windows in ((1, 12), (4, 3), (5, 2)):
            done = eplb("inspect", trace, "--window-steps", str(steps), "--json")
            assert json.loads(done.out)["traces"][0]["num_windows"] == windows
        assert eplb("inspect", trace, "--window-steps", "13").code == 2

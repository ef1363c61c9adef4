"""`eplb export` and `eplb import` as a stranger uses them."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from eplb.formats.engines.constraints import RULES
from eplb.formats.maps import ENGINES
from eplb.formats.plans import read_plan, write_plan
from eplb.placement import Placement
from eplb.plan import Plan
from eplb_cli.commands.export import ENGINES as CHOICES

from ..helpers import eplb, spawn

ROWS = [[5, 2, 0, 3, 4, 1, 5, 2], [1, 4, 3, 0, 5, 2, 4, 1]]
CONFIG = {
    "model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"],
    "num_hidden_layers": 3, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "n_routed_experts": 6, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "n_shared_experts": 1, "hidden_size": 8, "moe_intermediate_size": 4, "intermediate_size": 16,
    "num_nextn_predict_layers": 1, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Two layers, 6 experts in 8 slots on 4 GPUs."""
    path = tmp_path / "plan.json"
    write_plan(Plan(Placement(np.array(ROWS), 6, 4), np.array([1, 2])), str(path))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The configuration of a model of 3 layers, the first dense, and one that drafts."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def test_the_choices_are_the_engines() -> None:
    """The command's own list, which spares it loading them for help."""
    assert tuple(ENGINES) == CHOICES


@pytest.mark.usefixtures("plan", "model")
@pytest.mark.parametrize("engine", ENGINES)
def test_there_and_back_again(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was exported is imported as the same plan, as diff says and show shows."""
    monkeypatch.chdir(tmp_path)
    file = f"map{ENGINES[engine].ENDINGS[0]}"
    ending = eplb("export", "plan.json", "--to", engine, "--model", "config.json", "-o", file)
    assert ending.code == 0 and f"wrote  {file}: for {engine}" in ending.out
    # TensorRT-LLM's file has a row for the layer that drafts, which --layers leaves out.
    args = ("--gpus", 4, "--layers", "1:3", "--model", "config.json", "-o", "back.json")
    ending = eplb("import", file, "--from", engine, *args)
    assert ending.code == 0 and "next       eplb show back.json" in ending.out, ending.err
    assert eplb("diff", "plan.json", "back.json").code == 0
    assert "2 layers × 6 experts in 8 slots" in eplb("show", "back.json").out
    assert eplb("show", "back.json", "--layer", 2).code == 0


def test_flags_are_printed_whole(plan: Path, model: Path, tmp_path: Path) -> None:
    """One a line, never folded, so that they can be copied; remarks on standard error."""
    file = tmp_path / ("long-" * 30 + ".json")
    ending = eplb("export", plan, "--to", "sglang", "--model", model, "-o", file)
    assert ending.out.splitlines()[-3:] == [
        f"  --init-expert-location {file}", "  --ep-size 4", "  --ep-num-redundant-experts 2",
    ]  # fmt: skip
    assert "EP207" in ending.err and "`eplb explain EP207`" in ending.err
    quiet = tmp_path / "quiet.json"
    assert eplb("export", plan, "--to", "sglang", "-o", quiet, "-q").err == ""


def test_export_as_json(plan: Path, tmp_path: Path) -> None:
    """One object with the file, the flags and the remarks."""
    file = tmp_path / "m.yaml"
    document = json.loads(eplb("export", plan, "--to", "trtllm", "-o", file, "--json").out)
    assert (document["format"], document["engine"]) == ("eplb-export", "trtllm")
    assert (document["file"], document["num_gpus"]) == (str(file), 4)
    assert yaml.safe_load("\n".join(document["flags"]))["moe_expert_parallel_size"] == 4
    assert document["notes"][0].startswith("EP206")
    assert eplb("export", plan, "--to", "trtllm", "--json").code == 2


def test_files_through_pipes(plan: Path) -> None:
    """Text and bytes go to standard output; plans and maps come from standard input."""
    sent = eplb("export", "-", "--to", "sglang", stdin=plan.read_bytes())
    assert json.loads(sent.out)["physical_to_logical_map"][1:] == ROWS
    assert "--ep-size 4" in sent.err
    args = ("import", "-", "--from", "sglang", "--gpus", 4, "--layers", "1,2")
    back = eplb(*args, stdin=sent.out.encode())
    assert json.loads(back.out)["physical_to_logical"] == ROWS
    with spawn("export", plan, "--to", "deepseek", "-q", encoding="latin-1") as process:
        assert process.stdout is not None and process.stdout.read().startswith("PK")


def test_bytes_never_reach_a_terminal(plan: Path) -> None:
    """A file name is asked for."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", "from eplb_cli.main import main; main()",
         "export", str(plan), "--to", "deepseek"],
        stdout=theirs, stderr=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    os.close(theirs)
    os.close(ours)
    assert (done.returncode, "is no text; -o FILE writes it" in done.stderr) == (2, True)


def test_what_an_engine_cannot_hold_is_refused(tmp_path: Path, model: Path) -> None:
    """Exit 4 with the rule's id and what would do; nothing is written."""
    plan, file = tmp_path / "plan.json", tmp_path / "m.json"
    twice = Placement(np.array([[0, 0, 1, 2], [0, 1, 2, 0]]), 3, 2)
    write_plan(Plan(twice, np.array([1, 2])), str(plan))
    ending = eplb("export", plan, "--to", "sglang", "-o", file)
    assert ending.code == 4
    assert re.search(r"EP201.*layer 1 GPU 0 holds expert 0.*--repair", ending.err)
    ending = eplb("export", plan, "--to", "trtllm", "-o", tmp_path / "m.yaml", "--model", model)
    assert (ending.code, "EP204" in ending.err) == (4, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "plan.json"]


@pytest.mark.parametrize("rule", RULES)
def test_explain_knows_every_rule(rule: str) -> None:
    """With why and remedy; and in the list."""
    text = eplb("explain", rule.lower()).out
    assert rule in text and "why" in text and "remedy" in text
    assert rule in eplb("explain").out


def test_formats_lists_the_maps() -> None:
    """Beside the traces."""
    text = eplb("formats").out
    for engine in ENGINES:
        assert re.search(rf"^{engine} +\S", text.split("placement maps")[1], flags=re.M)


WRONG = [
    ("export", ["--to", "megatron"], "'megatron' is not one of"),
    ("export", [], "Missing option '--to'"),
    ("export", ["--to", "sglang", "-o", "plan.json"], "would overwrite a file that is read"),
    ("export", ["--to", "sglang", "-o", "config.json"], "exists; --force overwrites it"),
    ("export", ["--to", "sglang", "-o", "m.yaml"], r"\.json or \.pt is expected"),
    ("export", ["--to", "sglang", "--model", "none"], "none"),
    ("import", ["--from", "sglang"], "it is a plan; a map of an engine"),
    ("import", ["--from", "sglang", "--gpus", "0"], "Invalid value for '--gpus'"),
    ("import", ["--from", "vllm", "-o", "plan.json"], "would overwrite a file that is read"),
    ("import", ["--from", "vllm", "--layers", "3:"], "is no list of layers"),
    ("import", ["--from", "vllm", "--layers", "4:3"], "is no list of layers"),
    ("import", ["--from", "vllm", "--layers", "0:99999999999"], "is no list of layers"),
    ("import", ["--from", "vllm", "--layers", "3,3"], "ascending order"),
]


@pytest.mark.usefixtures("model")
@pytest.mark.parametrize(("command", "args", "message"), WRONG)
def test_wrong_usage_is_answered(
    command: str, args: list[str], message: str, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit 2 with a line that says what is expected."""
    monkeypatch.chdir(plan.parent)
    ending = eplb(command, "plan.json", *args)
    assert (ending.code, ending.out) == (2, "")
    assert re.search(message, " ".join(ending.err.split())), ending.err


def test_slots_that_do_not_divide(plan: Path, tmp_path: Path) -> None:
    """Exit 3, as everywhere."""
    file = tmp_path / "m.json"
    eplb("export", plan, "--to", "vllm", "-o", file)
    ending = eplb("import", file, "--from", "vllm", "--gpus", 3)
    assert (ending.code, "8 slots do not divide over 3 ranks" in ending.err) == (3, True)
    written = tmp_path / "live.json"
    assert eplb("import", file, "--from", "vllm", "--gpus", 4, "-o", written).code == 0
    assert read_plan(str(written)).layer_ids.tolist() == [0, 1]

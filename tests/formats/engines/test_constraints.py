"""What keeps a plan from every engine, and what is said of it."""

import re
from dataclasses import replace

import numpy as np
import pytest

from eplb import findings
from eplb.errors import InputError, RefusedError
from eplb.formats.engines.constraints import RULES
from eplb.formats.maps import ENGINES, export_plan
from eplb.model import Model
from eplb.placement import Placement
from eplb.plan import Plan

ROWS = np.array([[0, 2, 1, 0], [1, 0, 2, 1]])
PLAN = Plan(Placement(ROWS, 3, 2), np.array([3, 4]))
MODEL = Model("deepseek_v3", 5, (3, 4), 3)
TWICE = Plan(Placement(np.array([[0, 0, 1, 2], [0, 1, 2, 2]]), 3, 2), np.array([3, 4]))
EXCLUDED = Plan(
    Placement(np.array([[0, 1, 2, -1, -1, -1, 2, 1, 0]]), 3, 3, excluded_ranks=(1,)), np.array([3])
)
SHARED = replace(PLAN, options={"shared_experts": 1})

REFUSALS = {
    "empty slots": (EXCLUDED, None, r"EP202 .*GPU 1 is out of service.*--gpus 2"),
    "shared experts": (SHARED, None, r"EP204 .*1 shared experts as routed ones, of 3"),
    "other experts": (PLAN, replace(MODEL, num_experts=4), r"EP204 .*3 experts .*model .* 4"),
    "a dense layer": (PLAN, replace(MODEL, moe_layer_ids=(4,)), r"EP203 .*has layer 3, which"),
    "missing layers": (PLAN, replace(MODEL, moe_layer_ids=(2, 3, 4)), r"EP203 .*lacks layer 2 of"),
    "negative layers": (replace(PLAN, layer_ids=np.array([-1, 4])), None, r"EP203 .*layer -1"),
    "absurd layers": (replace(PLAN, layer_ids=np.array([3, 10**9])), None, r"EP203 .*1000000000"),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("what", REFUSALS)
def test_every_engine_refuses(what: str, engine: str) -> None:
    """With the rule's id, what was found and what would do."""
    plan, model, message = REFUSALS[what]
    with pytest.raises(RefusedError, match=message):
        export_plan(plan, engine, f"m{ENGINES[engine].ENDINGS[0]}", model)


@pytest.mark.parametrize("engine", ENGINES)
def test_same_gpu_copies(engine: str) -> None:
    """Refused where the engine would serve wrong results, else said; with layer, GPU and expert."""
    name, found = f"m{ENGINES[engine].ENDINGS[0]}", "in layer 3 GPU 0 holds expert 0 more than once"
    if engine in ("sglang", "vllm-ascend"):
        with pytest.raises(RefusedError, match=rf"EP201 .*{found}.*1 more.*--repair"):
            export_plan(TWICE, engine, name, MODEL)
    else:
        notes = export_plan(TWICE, engine, name, MODEL).notes
        assert any(note.startswith("EP201") and found in note for note in notes)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_plan_of_draft_layers_alone(engine: str) -> None:
    """Nothing is left for engines that place those layers themselves."""
    plan = replace(PLAN, layer_ids=np.array([5, 6]), provenance={"decoder_layers": 5})
    name = f"m{ENGINES[engine].ENDINGS[0]}"
    if engine in ("trtllm", "deepseek"):
        assert export_plan(plan, engine, name).data
    else:
        with pytest.raises(RefusedError, match="none of the 5 decoder layers"):
            export_plan(plan, engine, name)


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_model_it_is_said_what_was_not_checked(engine: str) -> None:
    """And with one, not."""
    name = f"m{ENGINES[engine].ENDINGS[0]}"
    assert any(note.startswith("EP206") for note in export_plan(PLAN, engine, name).notes)
    checked = export_plan(PLAN, engine, name, MODEL)
    assert not any(note.startswith("EP206") for note in checked.notes)


@pytest.mark.parametrize("engine", ENGINES)
def test_unknown_endings_and_engines(engine: str) -> None:
    """The ending chooses the form, so it must be one of the engine's."""
    with pytest.raises(InputError, match=r"m\.txt: a name ending in \.\w+"):
        export_plan(PLAN, engine, "m.txt")
    with pytest.raises(InputError, match="sglang, vllm, trtllm, vllm-ascend, deepseek are known"):
        export_plan(PLAN, "megatron", "m.json")


def test_rules_are_stable_and_whole() -> None:
    """Ids of their own, a sentence each for why and remedy."""
    assert not set(RULES) & set(findings.RULES)
    for name, rule in RULES.items():
        assert re.fullmatch(r"EP2\d\d", name)
        assert rule.title and rule.why.endswith(".") and rule.remedy.endswith(".")

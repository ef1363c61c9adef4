"""The vLLM plug-in: the entry it replaces, the plans it is given, and what it refuses."""

import inspect
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eplb.errors import EplbError, InputError, RefusedError
from eplb.formats.plans import write_plan
from eplb.placement import Placement
from eplb.plan import Plan, placement_digest
from eplb.plugins import vllm as plugin

from ..helpers import ROOT
from .seam import DRAFT, START, TARGET, DefaultPolicy, ask, digest_of, run_code, write


def test_without_the_variables_nothing_happens(policies: dict[str, Any]) -> None:
    """vLLM keeps its own policy."""
    plugin.register()
    assert policies == {"default": DefaultPolicy}


def test_without_the_variables_nothing_is_imported() -> None:
    """Importing the plug-in and registering loads neither vLLM nor torch nor numpy."""
    code = (
        "import sys, eplb.plugins.vllm\neplb.plugins.vllm.register()\n"
        "heavy = {'vllm', 'torch', 'numpy', 'numba', 'orjson'} & set(sys.modules)\n"
        "sys.exit(str(sorted(heavy)) if heavy else 0)"
    )
    assert run_code(code, {}) == ""


def test_the_entry_is_replaced_in_place_and_once(
    policies: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The dictionary that vLLM holds is changed, keeps its keys, and a second call is idle."""
    monkeypatch.setenv(plugin.PLAN, write(tmp_path, "plan.json", TARGET))
    plugin.register()
    ours = policies["default"]
    plugin.register()
    assert policies == {"default": ours}
    assert issubclass(ours, DefaultPolicy)
    assert inspect.signature(ours.rebalance_experts).parameters.keys() == (
        inspect.signature(DefaultPolicy.rebalance_experts).parameters.keys()
    )


def test_a_saved_plan_is_served_with_stable_slots(
    policies: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each GPU holds its experts of the plan, those that it had in the slots that they were in."""
    monkeypatch.setenv(plugin.PLAN, write(tmp_path, "plan.json", TARGET))
    plugin.register()
    found = ask(policies, np.ones((2, 4), np.int64), START)
    assert found.dtype == torch.int64
    assert found.device.type == "cpu"
    assert found.is_contiguous()
    # Layer 0: 3 takes the slot of 2 on GPU 0, and 2 that of 1 on GPU 1.
    # Layer 1: 3 takes the slot of 1 on GPU 0, and 2 that of 0 on GPU 1.
    assert found.tolist() == [[0, 1, 3, 3, 0, 2], [0, 3, 2, 3, 2, 1]]
    again = ask(policies, np.full((2, 4), 9), found)
    assert torch.equal(again, found), "the same map again moves nothing"


@pytest.mark.parametrize(
    "old", [None, np.full((2, 6), -1), np.zeros((2, 8), int)], ids=["none", "unfilled", "other P"]
)
def test_an_unusable_old_map_leaves_the_slots_of_the_plan(
    policies: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: object
) -> None:
    """Nothing stays where nothing was, also while profiling, without any load."""
    monkeypatch.setenv(plugin.PLAN, write(tmp_path, "plan.json", TARGET))
    plugin.register()
    found = ask(policies, np.zeros((2, 4), np.int64), old)
    assert found.tolist() == TARGET.physical_to_logical.tolist()


def test_target_and_drafter_are_told_apart_by_their_size(
    policies: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each model state is given the plan of as many layers; the digests are said and hold."""
    files = [write(tmp_path, "t.json", TARGET), write(tmp_path, "d.json", DRAFT)]
    monkeypatch.setenv(plugin.PLAN, os.pathsep.join(files))
    monkeypatch.setenv(plugin.DIGEST, os.pathsep.join([digest_of(TARGET), digest_of(DRAFT)]))
    with caplog.at_level(logging.INFO, "vllm.plugins.eplb"):
        plugin.register()
        for _ in range(2):
            assert ask(policies, np.ones((2, 4))).tolist() == TARGET.physical_to_logical.tolist()
            assert ask(policies, np.ones((1, 4))).tolist() == DRAFT.physical_to_logical.tolist()
    assert all(record.name.startswith("vllm.") for record in caplog.records)
    assert caplog.text.count(digest_of(TARGET)) == caplog.text.count(digest_of(DRAFT)) == 2


def test_one_plan_serves_the_target_and_its_drafter(
    policies: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers come in the order of their numbers, whatever order the plan has them in, and those
    beyond the decoder layers that it states are the drafter's."""
    rows = [*TARGET.physical_to_logical.tolist(), *DRAFT.physical_to_logical.tolist()]
    layer_ids, turned = np.array([5, 3, 4]), np.array(rows)[[2, 0, 1]]
    plan = Plan(Placement(turned, 4, 2), layer_ids, provenance={"decoder_layers": 5})
    write_plan(plan, str(tmp_path / "both.json"))
    monkeypatch.setenv(plugin.PLAN, str(tmp_path / "both.json"))
    monkeypatch.setenv(plugin.DIGEST, placement_digest(plan.placement, plan.layer_ids))
    plugin.register()
    assert ask(policies, np.ones((2, 4))).tolist() == rows[:2]
    assert ask(policies, np.ones((1, 4))).tolist() == rows[2:]


def test_layers_are_served_in_their_order(
    policies: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a plan that knows its layers by their numbers alone."""
    turned = Placement(TARGET.physical_to_logical[::-1], 4, 2)
    write_plan(Plan(turned, np.array([4, 3])), str(tmp_path / "t.json"))
    monkeypatch.setenv(plugin.PLAN, str(tmp_path / "t.json"))
    plugin.register()
    assert ask(policies, np.ones((2, 4))).tolist() == TARGET.physical_to_logical.tolist()


def test_another_number_of_nodes_is_remarked_once(
    policies: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A placement is by GPUs, so it is served all the same."""
    monkeypatch.setenv(plugin.PLAN, write(tmp_path, "t.json", TARGET))
    plugin.register()
    for _ in range(2):
        ask(policies, np.ones((2, 4)), num_nodes=2)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "planned for 1 nodes and vLLM counts 2" in caplog.text


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"load": np.ones((3, 4))}, r"3 layers × 4 experts and .*t\.json \(2 layers × 4 .*MTP"),
        ({"load": np.ones((2, 5))}, r"2 layers × 5 experts"),
        ({"num_ranks": 3}, r"on 2 GPUs\) does not fit: vLLM has 3 .*--gpus 3"),
        ({"num_slots": 8}, r"vLLM has 8 slots a layer; .*num_redundant_experts 2 would"),
    ],
)
def test_a_plan_of_another_model_or_size_is_refused(
    policies: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    message: str,
) -> None:
    """What vLLM has and what the plan has are both named."""
    monkeypatch.setenv(plugin.PLAN, write(tmp_path, "t.json", TARGET))
    plugin.register()
    with pytest.raises(RefusedError, match=message):
        ask(policies, **{"load": np.ones((2, 4)), **asked})


def _empty_gpu() -> Placement:
    return Placement(np.array([[0, 1, -1, -1]]), 2, num_ranks=2, excluded_ranks=(1,))


@pytest.mark.parametrize(
    ("variables", "error", "message"),
    [
        ({"POLICY": "fast"}, InputError, r"'fast'; 'live' is the only policy"),
        ({"POLICY": ""}, InputError, r"''; 'live' is the only policy"),
        ({"POLICY": "live", "PLAN": "{t}"}, InputError, r"both EPLB_VLLM_PLAN and .* are set"),
        ({"DIGEST": "abc"}, InputError, r"PLAN_DIGEST is set and EPLB_VLLM_PLAN is not"),
        ({"PLAN": ""}, InputError, r"EPLB_VLLM_PLAN is '', with an empty entry"),
        ({"PLAN": "{t}:"}, InputError, r"with an empty entry; entries are joined by ':'"),
        ({"PLAN": "{t}", "DIGEST": ""}, InputError, r"EPLB_VLLM_PLAN_DIGEST is ''"),
        ({"PLAN": "{t}", "DIGEST": "a:b"}, InputError, r"2 digests and EPLB_VLLM_PLAN 1 plans"),
        ({"PLAN": "{t}", "DIGEST": "abc"}, RefusedError, r"has the digest \w{32} and .* pins abc"),
        ({"PLAN": "{none}"}, InputError, r"none\.json"),
        ({"PLAN": "{e}"}, RefusedError, r"e\.json: it leaves GPU 1 empty .*--gpus"),
        ({"PLAN": "{t}:{t}"}, RefusedError, r"are both of 2 layers × 4 experts"),
    ],
)
def test_wrong_settings_stop_the_start(
    policies: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    error: type[EplbError],
    message: str,
) -> None:
    """Each has its own message, and vLLM's policy stays as it was."""
    files = {"t": write(tmp_path, "t.json", TARGET), "e": write(tmp_path, "e.json", _empty_gpu())}
    files["none"] = str(tmp_path / "none.json")
    for name, value in variables.items():
        monkeypatch.setenv(getattr(plugin, name), value.format(**files).replace(":", os.pathsep))
    with pytest.raises(error, match=message):
        plugin.register()
    assert policies == {"default": DefaultPolicy}


class _OtherPolicy:
    @classmethod
    def rebalance_experts(cls, weight: Any, num_replicas: int) -> Any:
        raise AssertionError


def _without_module(policies: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm.distributed.eplb.policy", None)


def _without_dictionary(policies: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["vllm.distributed.eplb.policy"], "EPLB_POLICIES")


def _without_default(policies: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(policies, "default")


def _with_other_arguments(policies: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(policies, "default", _OtherPolicy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without_module, r"importing vllm\.distributed\.eplb\.policy failed"),
        (_without_dictionary, r"no dictionary EPLB_POLICIES"),
        (_without_default, r"with a class for 'default'"),
        (_with_other_arguments, r"called with \('weight', 'num_replicas'\), not"),
    ],
)
def test_a_vllm_without_the_seam_is_refused(
    policies: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[dict[str, Any], pytest.MonkeyPatch], None],
    message: str,
) -> None:
    """It would serve without the plan otherwise; its version and the one that works are named."""
    change(policies, monkeypatch)
    monkeypatch.setenv(plugin.POLICY, "live")
    with pytest.raises(RefusedError, match=rf"version 0\.33\.0.*{message}.*use vLLM 0\.33"):
        plugin.register()


def test_without_vllm_the_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables are set in a process that has no vLLM at all."""
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "vllm", None)
    monkeypatch.setenv(plugin.POLICY, "live")
    with pytest.raises(RefusedError, match="version unknown"):
        plugin.register()


def test_the_documentation_names_what_can_be_set() -> None:
    """Every variable, and the options of vLLM that a plan needs."""
    text = (ROOT / "docs" / "vllm.md").read_text()
    options = ("--enable-eplb", "num_redundant_experts", "step_interval", "window_size")
    for name in (plugin.PLAN, plugin.DIGEST, plugin.POLICY, *options):
        assert name in text

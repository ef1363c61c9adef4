"""The plug-in in vLLM 0.33's own files, where the benchmarks' cache of peers has them."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, Literal, get_args

import numpy as np
import pytest
import torch

from eplb.placement import Placement
from eplb.plugins import vllm as plugin
from eplb.plugins.vllm_policies import keep_slots

from ..helpers import problem
from .seam import DRAFT, START, TARGET, write


class _Stub(ModuleType):
    """A module whose every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _real_folder() -> Path:
    """Where vLLM 0.33's files are: the cache folder of the benchmarks' peers."""
    home = Path(os.environ.get("EPLB_PEERS") or Path.home() / ".cache" / "eplb" / "peers")
    folder = home / "vllm==0.33.0" / "vllm" / "distributed"
    policy = ("policy/__init__.py", "policy/abstract.py", "policy/default.py")
    for name in (*policy, "__init__.py", "eplb_state.py", "async_worker.py"):
        if not (folder / "eplb" / name).exists():
            pytest.skip(f"vLLM 0.33's file distributed/eplb/{name} is not in {home} (EPLB_PEERS)")
    return folder


def _move_nothing(old: Any, new: Any, *_: Any) -> None:
    assert old.shape == new.shape


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """vLLM 0.33's own policies, state and asynchronous worker; all that they import is a stub.

    They run as rank 1 of 2 on the CPU, and weights are not moved.
    """
    folder = _real_folder()
    group = SimpleNamespace(device_group=SimpleNamespace(rank=lambda: 1, size=lambda: 2))
    stubs: dict[str, dict[str, Any]] = {
        "vllm": {"__version__": "0.33.0"},
        "vllm.config": {},
        "vllm.config.parallel": {"EPLBPolicyOption": Literal["default"]},
        "vllm.config.utils": {},
        "vllm.distributed": {"__path__": [str(folder)]},
        "vllm.distributed.parallel_state": {
            "get_ep_group": lambda: group,
            "get_eplb_group": lambda: group,
            "get_node_count": lambda: 1,
        },
        "vllm.distributed.stateless_coordinator": {},
        "vllm.distributed.utils": {},
        "vllm.logger": {"init_logger": logging.getLogger},
        "vllm.model_executor": {},
        "vllm.model_executor.models": {},
        "vllm.model_executor.models.interfaces": {},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_rocm=lambda: False)},
        "vllm.utils": {},
        "vllm.utils.gpu_sync_debug": {"gpu_sync_allowed": nullcontext},
        "vllm.utils.torch_utils": {"PIN_MEMORY": False},
        "vllm.distributed.eplb.eplb_communicator": {"create_eplb_communicator": lambda **_: None},
        "vllm.distributed.eplb.eplb_utils": {"device_stream": nullcontext},
        "vllm.distributed.eplb.migration_scheduler": {},
        "vllm.distributed.eplb.rebalance_execute": {
            "rearrange_expert_weights_inplace": _move_nothing
        },
    }
    for name, members in stubs.items():
        module = _Stub(name)
        vars(module).update({"__path__": [], **members})
        monkeypatch.setitem(sys.modules, name, module)
    try:
        policy = import_module("vllm.distributed.eplb.policy")
        state = import_module("vllm.distributed.eplb.eplb_state")
        monkeypatch.setattr(state, "all_reduce", lambda tensor, group: None)
        yield policy
    finally:
        for name in [name for name in sys.modules if name.startswith("vllm.distributed.eplb")]:
            if name not in stubs:
                del sys.modules[name]


def _model(num_layers: int) -> SimpleNamespace:
    return SimpleNamespace(
        num_moe_layers=num_layers,
        num_routed_experts=4,
        num_logical_experts=4,
        num_redundant_experts=2,
        num_physical_experts=6,
        num_local_physical_experts=3,
        num_expert_groups=1,
        moe_layers=[],
        expert_weights=[[torch.zeros(3, 1)] for _ in range(num_layers)],
        set_eplb_state=lambda *_: None,
    )


def _state(num_layers: tuple[int, ...]) -> Any:
    """vLLM's own state of these models, as it is before the first rearrangement."""
    module = sys.modules["vllm.distributed.eplb.eplb_state"]
    settings = SimpleNamespace(
        use_async=False, window_size=3, step_interval=8, policy="default", communicator="none"
    )
    config = SimpleNamespace(eplb_config=settings, enable_elastic_ep=False, num_ubatches=0)
    state = module.EplbState(config, torch.device("cpu"))
    for n in num_layers:
        state.add_model(_model(n), SimpleNamespace(model=str(n), compute_hash=lambda n=n: str(n)))
    return state


def test_the_real_vllm_takes_the_plan(
    real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM 0.33's state looks our policy up, commits target's and drafter's plans, and repeats."""
    files = [write(tmp_path, "t.json", TARGET), write(tmp_path, "d.json", DRAFT)]
    monkeypatch.setenv(plugin.PLAN, os.pathsep.join(files))
    plugin.register()
    option = sys.modules["vllm.config.parallel"].EPLBPolicyOption
    assert set(real.EPLB_POLICIES) == set(get_args(option)), "what vLLM asserts on import"
    assert issubclass(real.EPLB_POLICIES["default"], real.DefaultEplbPolicy)

    state = _state((2, 1))
    assert state.policy is real.EPLB_POLICIES["default"]
    states = list(state.model_states.values())
    state.rearrange(is_profile=True)
    assert states[0].physical_to_logical_map.tolist() == START.tolist(), "profiling commits nothing"
    committed = []
    for _ in range(2):
        state.rearrange()
        committed.append([s.physical_to_logical_map.clone() for s in states])
        for s, plan, old in zip(states, (TARGET, DRAFT), (START, START[:1]), strict=True):
            assert s.physical_to_logical_map.tolist() == keep_slots(plan, old).tolist()
            assert s.logical_replica_count.tolist() == plan.replica_count.tolist()
    assert all(torch.equal(a, b) for a, b in zip(*committed, strict=True))


def test_the_real_asynchronous_worker_takes_the_plan(
    real: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What vLLM's background thread asks for and checks."""
    monkeypatch.setenv(plugin.PLAN, write(tmp_path, "t.json", TARGET))
    plugin.register()
    state = _state((2,))
    state.is_async = True
    state.rearrange_event = SimpleNamespace(record=lambda: None)
    state.rearrange()
    (model_state,) = state.model_states.values()
    worker = sys.modules["vllm.distributed.eplb.async_worker"]
    old = model_state.physical_to_logical_map.cpu()
    found = worker.run_rebalance_experts(model_state, state, old, None)
    assert found.tolist() == keep_slots(TARGET, START).tolist()


def test_the_real_vllm_plans_live(real: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted loads lead to a better map than the start; without any the start stays."""
    monkeypatch.setenv(plugin.POLICY, "live")
    plugin.register()
    state = _state((2,))
    (model_state,) = state.model_states.values()
    state.rearrange()
    assert model_state.physical_to_logical_map.tolist() == START.tolist()
    model_state.expert_load_window[0] = torch.tensor([[4, 4, 4, 8, 4, 4]] * 2)  # by slot
    state.rearrange()
    found = Placement(model_state.physical_to_logical_map.numpy(), 4, 2)
    share = np.array([8, 8, 4, 8]) / found.replica_count
    by_rank = np.take_along_axis(share, found.physical_to_logical, 1).reshape(2, 2, 3).sum(axis=2)
    assert by_rank.max() < 16, "the start has 4 + 4 + 4 and 8 + 4 + 4"
    assert problem(np.ones((2, 4)), 2, 3).obeyed_by(found).all()

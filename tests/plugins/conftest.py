"""The environment of a vLLM process."""

import sys
from types import ModuleType
from typing import Any

import pytest

from eplb.plugins import vllm as plugin

from .seam import DefaultPolicy


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables is set before a test."""
    for name in (plugin.PLAN, plugin.DIGEST, plugin.POLICY):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def policies(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The dictionary of a vLLM that has the seam and nothing else."""
    names = ["vllm", "vllm.distributed", "vllm.distributed.eplb", "vllm.distributed.eplb.policy"]
    modules = [ModuleType(name) for name in names]
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    vars(modules[0])["__version__"] = "0.33.0"
    found = vars(modules[-1])["EPLB_POLICIES"] = {"default": DefaultPolicy}
    return found

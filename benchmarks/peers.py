"""Peer planners for the benchmarks, loaded from the wheels that their projects publish.

Nothing of a peer is kept in this repository. A wheel is downloaded once into a cache folder
(``EPLB_PEERS``, by default ``~/.cache/eplb/peers``), its planner files are taken out, and the
wheel is deleted. A file runs as published, and only with the SHA-256 recorded here; the engine
modules that it imports are stubs. `load` raises `PeerMissing` with a one-line reason where the
download or a library is missing, so that a benchmark can skip that peer by name.

    plan = peers.load("flashlb")
    physical_to_logical = plan(loads, num_slots=288, num_ranks=32)  # loads [W, L, E] -> [L, S]

Every plan starts afresh: no peer remembers an earlier call.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType, ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Stubs = Mapping[str, Mapping[str, Any]]  # module -> its attributes

__all__ = ["PEERS", "Peer", "PeerMissing", "Planner", "available", "load"]


class PeerMissing(RuntimeError):
    """A peer cannot be loaded here; the message is the reason, in one line."""


@dataclass(frozen=True)
class Problem:
    """One planning problem as the adapters read it."""

    loads: np.ndarray  # [W, L, E] token counts, windows in time order
    num_slots: int
    num_ranks: int
    num_nodes: int
    num_groups: int
    current: np.ndarray | None  # [L, S]

    @property
    def total(self) -> np.ndarray:
        """Loads summed over the windows, [L, E], for peers that take one matrix."""
        total: np.ndarray = self.loads.sum(axis=0)
        return total

    @property
    def within_nodes(self) -> bool:
        """Whether expert groups stay within nodes: the test that SGLang and vLLM both make."""
        return self.num_groups % self.num_nodes == 0

    def expert_table(self) -> tuple[np.ndarray, np.ndarray]:
        """Placement [L, R, S/R] and its loads [W, L, R, S/R], as vllm-ascend's planners take them.

        Without a current placement it is the engines' linear start map, slot p -> expert p mod E.
        An expert's load sits whole on its first copy: these planners begin by adding the copies
        up again, so that the plan does not depend on the split, and whole counts stay exact.
        """
        num_windows, num_layers, num_experts = self.loads.shape
        slots = self.current
        if slots is None:
            slots = np.tile(np.arange(self.num_slots) % num_experts, (num_layers, 1))
        spread = np.zeros((num_windows, num_layers, self.num_slots), dtype=self.loads.dtype)
        for layer in range(num_layers):
            experts, first = np.unique(slots[layer], return_index=True)
            spread[:, layer, first] = self.loads[:, layer, experts]
        by_rank = (num_layers, self.num_ranks, -1)
        return slots.reshape(by_rank).copy(), spread.reshape(num_windows, *by_rank)


def _deepseek(module: Any, p: Problem) -> Any:
    weight = module.torch.from_numpy(p.total)
    return module.rebalance_experts(
        weight, p.num_slots, p.num_groups, p.num_nodes, p.num_ranks, p.within_nodes
    )[0].numpy()


def _deepseek_vec(module: Any, p: Problem) -> Any:
    tokens, slots_per_rank = module.torch.from_numpy(p.loads), p.num_slots // p.num_ranks
    return module.rebalance_experts(
        tokens, p.num_slots, slots_per_rank, p.num_groups, p.num_nodes, p.within_nodes
    )[0].numpy()


def _vllm(module: Any, p: Problem) -> Any:
    # The current map only keeps an expert in its slot where it stays on its rank.
    current = None if p.current is None else _Tensor(p.current)
    return module.DefaultEplbPolicy.rebalance_experts(
        _Tensor(p.total), p.num_slots, p.num_groups, p.num_nodes, p.num_ranks, current
    ).numpy()


def _flashlb(module: Any, p: Problem) -> Any:
    """FlashLB with its published settings: z-score .674 (75th percentile), depth 4, width 8.

    - Windows: the engine hands over the tokens of every slot in each of its last 600 forward
      passes (`expert_heat_collection_interval`). Here the given windows take the passes' place, in
      time order, and FlashLB makes its observation window exactly as long as they are many.
    - sample_size 64: up to 64 windows each is a sample of its own; above, FlashLB sums W // 64
      neighbours into a sample and drops the oldest windows left over. It adds 1 to every count.
      A single window has no variance, so that the plan is then by means alone.
    - layers_upper_bound -1: any number of layers may change. The thresholds that leave a layer
      alone (above .95 of its last balance and above .9 on fewer than 32 ranks, else .9 and .85)
      are read only where the same object planned before, and here each call makes a new one.
    - The current table numbers ranks and slots so that few copies move, and stands in for a layer
      that could not be placed whole; the balance of a plan is otherwise free of it.
    - Nodes and groups are ignored.

    Its compiled loops do not check bounds, and write outside their arrays where a trial gives an
    expert more copies than ranks can take (one expert with nearly all load). With
    ``NUMBA_BOUNDSCHECK=1``, and a fresh cache folder for numba to compile into, that is an
    IndexError. The engine would then drop the layer's plan if a rank held an expert twice; that
    check is not the planner's, and is not made here.
    """
    num_experts = p.loads.shape[-1]
    if 3 * -(-num_experts // 4) >= num_experts:  # 1, 2, 3, 5, 6, 9
        raise ValueError(f"flashlb: of {num_experts} experts none are left for its fourth step")
    module.get_dynamic_eplb_group = lambda: SimpleNamespace(world_size=p.num_ranks)
    return module.FlashLB().rebalance_experts(*p.expert_table())[2]


def _swift(module: Any, p: Problem) -> Any:
    """SwiftBalancer with its published settings: a pair of ranks exchanges one copy in a plan.

    It improves the current table (the linear start map where there is none) by few moves and
    takes one load matrix. Its mode for nodes is off, as in the engine's own call.
    """
    policy = module.SwiftBalanceEplb()
    policy.num_die_per_host = p.num_ranks // p.num_nodes
    table, spread = p.expert_table()
    return policy.rebalance_experts(_Tensor(table), _Tensor(spread.sum(axis=0)))[2]


class _Tensor:
    """The tensor methods that the numpy planners call, so that those run without torch."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    def float(self) -> _Tensor:
        return _Tensor(self._array.astype(np.float32))

    def cpu(self) -> _Tensor:
        return self

    def numpy(self) -> np.ndarray:
        return self._array


_NPU = SimpleNamespace(device_count=lambda: 1)
_TORCH: Stubs = {"torch": {"Tensor": _Tensor, "from_numpy": _Tensor, "npu": _NPU}, "torch_npu": {}}
_VLLM: Stubs = {**_TORCH, ".abstract": {"AbstractEplbPolicy": object}}
_ASCEND: Stubs = {
    **_TORCH,
    ".policy_abstract": {"EplbPolicy": object},
    "vllm.logger": {"logger": SimpleNamespace(info=lambda *_: None)},
    "vllm_ascend.distributed.parallel_state": {"get_dynamic_eplb_group": None},
}


@dataclass(frozen=True)
class Peer:
    """Where a planner comes from, and how it is called."""

    name: str
    wheel: str
    file: str
    sha256: str
    licence: str
    adapter: Callable[[Any, Problem], Any] = field(repr=False)
    stubs: Stubs = field(default_factory=dict, repr=False)


_ALL = (
    Peer(
        "deepseek",  # DeepSeek's published greedy planner, as SGLang ships it
        "sglang==0.5.23",
        "sglang/srt/eplb/eplb_algorithms/deepseek.py",
        "7c42cd0cb0f03da5dc68d13d38833f2986625ac96813dae4853521341cc5219c",
        "Apache-2.0 (SGLang), MIT (DeepSeek's original)",
        _deepseek,
    ),
    Peer(
        "deepseek-vec",  # SGLang's vectorised variant, which reads the windows
        "sglang==0.5.23",
        "sglang/srt/eplb/eplb_algorithms/deepseek_vec.py",
        "573cb921aaee6b5560547ce304d65a555fefb752d8d412ed273ecf9b307bd359",
        "Apache-2.0 (SGLang), MIT (DeepSeek's original)",
        _deepseek_vec,
    ),
    Peer(
        "vllm",  # vLLM's default policy
        "vllm==0.33.0",
        "vllm/distributed/eplb/policy/default.py",
        "4b77c5b6075694b882d3f53ca6fa93aa9b5beb823920a69bb9b7333c7ef27270",
        "Apache-2.0",
        _vllm,
        _VLLM,
    ),
    Peer(
        "flashlb",  # vllm-ascend's policy 3
        "vllm-ascend==0.23.0",
        "vllm_ascend/eplb/core/policy/policy_flashlb.py",
        "39e3f91b65ac9a506c0ace99f507ab8cf90918fd00de2f9233d3e5fd95d1d810",
        "Apache-2.0",
        _flashlb,
        _ASCEND,
    ),
    Peer(
        "swift",  # vllm-ascend's policy 2, its default
        "vllm-ascend==0.23.0",
        "vllm_ascend/eplb/core/policy/policy_swift_balancer.py",
        "a6669f1183b39e873267e119efb9e2ad91338604cff1f75f05f78ca41c2c1d40",
        "Apache-2.0",
        _swift,
        _ASCEND,
    ),
)
PEERS: Mapping[str, Peer] = MappingProxyType({peer.name: peer for peer in _ALL})


@dataclass(frozen=True)
class Planner:
    """A loaded peer, called like any other planner."""

    peer: Peer
    module: ModuleType = field(repr=False)

    def __call__(
        self,
        loads: np.ndarray,
        num_slots: int,
        num_ranks: int,
        num_nodes: int = 1,
        num_groups: int = 1,
        current: np.ndarray | None = None,
    ) -> np.ndarray:
        """Place the experts.

        Parameters
        ----------
        loads
            Token counts [W, L, E]: windows in time order, layers, experts.
        num_slots, num_ranks, num_nodes, num_groups
            Physical experts of a layer, ranks, nodes, expert groups. DeepSeek's and vLLM's planners
            keep groups within nodes where num_nodes divides num_groups, and else ignore nodes;
            vllm-ascend's ignore them always.
        current
            The placement now in use, [L, S]. FlashLB, SwiftBalancer and vLLM read it.

        Returns
        -------
        np.ndarray
            Physical to logical map [L, S], int64.
        """
        loads = np.ascontiguousarray(loads)
        if loads.dtype.kind in "iu":  # one integer type, so that numba compiles FlashLB once
            loads = loads.astype(np.int64, copy=False)
        _, num_layers, num_experts = loads.shape
        if current is not None:
            current = np.ascontiguousarray(current, dtype=np.int64).reshape(num_layers, num_slots)
        problem = Problem(loads, num_slots, num_ranks, num_nodes, num_groups, current)
        plan = np.asarray(self.peer.adapter(self.module, problem), dtype=np.int64)
        plan = plan.reshape(num_layers, num_slots)
        if any(not np.array_equal(np.unique(row), np.arange(num_experts)) for row in plan):
            raise RuntimeError(f"{self.peer.name} returned a plan that misses an expert")
        return plan


# What the tests of the plug-in run beside a planner, once it is in the cache.
_EPLB = "vllm/distributed/eplb"
_BESIDE = {
    "vllm==0.33.0": (
        f"{_EPLB}/__init__.py", f"{_EPLB}/eplb_state.py", f"{_EPLB}/async_worker.py",
        f"{_EPLB}/policy/__init__.py", f"{_EPLB}/policy/abstract.py",
    ),
}  # fmt: skip


@cache  # a failure is kept too, so that a machine without a network waits once for a wheel
def _unpack(wheel: str, folder: Path) -> str:
    """Download a wheel and keep its planner files; return why that failed, or nothing."""
    # Only text is taken out, so the wheel of one platform serves every machine and Python.
    command = [sys.executable, "-m", "pip", "download", wheel, "--quiet", "--no-deps", "--no-input"]
    command += ["--only-binary", ":all:", "--python-version", "3.11", "--implementation", "cp"]
    command += ["--abi", "cp311", "--abi", "abi3", "--no-cache-dir", "--retries", "1"]
    command += ["--platform", "manylinux_2_34_x86_64", "--platform", "manylinux_2_28_x86_64"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            pip = subprocess.run([*command, "--dest", scratch], capture_output=True, text=True)
            if pip.returncode:
                return f"{wheel} cannot be downloaded: {(pip.stderr.splitlines() or ['?'])[-1]}"
            with zipfile.ZipFile(next(Path(scratch).glob("*.whl"))) as archive:
                planners = [peer.file for peer in _ALL if peer.wheel == wheel]
                for file in [*_BESIDE.get(wheel, ()), *planners]:
                    target = folder / wheel / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    # Moved into place whole, so that a benchmark running beside sees no half file.
                    Path(archive.extract(file, scratch)).replace(target)
    except (OSError, KeyError, StopIteration, zipfile.BadZipFile) as error:
        return f"{wheel} cannot be unpacked: {type(error).__name__}: {error}"
    return ""


def _source(peer: Peer, download: bool) -> Path:
    """Path of a peer's file in the cache; a file with the recorded hash is its own stamp."""
    folder = Path(os.environ.get("EPLB_PEERS") or Path.home() / ".cache" / "eplb" / "peers")
    path = folder / peer.wheel / peer.file
    if not path.exists():
        reason = _unpack(peer.wheel, folder) if download else f"{peer.wheel} is not in the cache"
        if reason:
            raise PeerMissing(f"{peer.name}: {reason}")
    if hashlib.sha256(path.read_bytes()).hexdigest() != peer.sha256:
        raise PeerMissing(f"{peer.name}: {path} is not the published file; delete it")
    return path


@cache
def _import(name: str, path: Path) -> ModuleType:
    """Import a planner file into a package of our own, its engine's modules stubbed meanwhile."""
    full_name = f"_eplb_peers.{name.replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(full_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    stubs = {full_name: module}
    for stub_name, attributes in PEERS[name].stubs.items():
        stub = ModuleType(stub_name)
        vars(stub).update(attributes)
        stubs[f"_eplb_peers{stub_name}" if stub_name.startswith(".") else stub_name] = stub
    hidden = {stub_name: sys.modules.get(stub_name) for stub_name in stubs}
    sys.modules.update(stubs)
    try:
        spec.loader.exec_module(module)
    finally:  # only the stubs go: what the planner imported besides (scipy, numba) stays
        for stub_name, real in hidden.items():
            del sys.modules[stub_name]
            if real is not None:
                sys.modules[stub_name] = real
    # numba's cache on disk finds the module of a compiled function by this name.
    sys.modules[full_name] = module
    return module


def load(name: str, download: bool = True) -> Planner:
    """Load a peer by name (a key of `PEERS`), downloading its wheel where that is allowed.

    Raises
    ------
    PeerMissing
        The wheel or a library (torch, numba, scipy) is not to be had here.
    """
    peer = PEERS[name]
    path = _source(peer, download)
    try:
        return Planner(peer, _import(name, path))
    except ImportError as error:
        raise PeerMissing(f"{name}: {error}") from None


def available(download: bool = True) -> tuple[str, ...]:
    """Name the peers that can be loaded here."""
    names = []
    for name in PEERS:
        try:
            load(name, download)
        except PeerMissing:
            continue
        names.append(name)
    return tuple(names)

"""A vLLM that has the seam and nothing else, and small plans for it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from eplb.formats.plans import write_plan
from eplb.placement import Placement
from eplb.plan import Plan, placement_digest

# Two layers of four experts in six slots on two GPUs, and a drafter's single layer.
TARGET = Placement(np.array([[3, 0, 1, 2, 0, 3], [2, 0, 3, 1, 3, 2]]), 4, num_ranks=2)
DRAFT = Placement(np.array([[3, 2, 1, 0, 1, 3]]), 4, num_ranks=2)
START = np.array([[0, 1, 2, 3, 0, 1]] * 2)  # vLLM's own start: slot E + i holds expert i mod E


class DefaultPolicy:
    """vLLM's policy as far as the plug-in looks at it."""

    @classmethod
    def rebalance_experts(
        cls,
        weight: Any,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Any = None,
    ) -> Any:
        raise AssertionError("vLLM's own policy was asked")


def write(folder: Path, name: str, placement: Placement) -> str:
    path = str(folder / name)
    write_plan(Plan(placement, np.arange(placement.num_layers)), path)
    return path


def digest_of(placement: Placement) -> str:
    return placement_digest(placement, np.arange(placement.num_layers))


def ask(
    policies: dict[str, Any],
    load: Any,
    old: Any = None,
    *,
    num_slots: int = 6,
    num_groups: int = 1,
    num_nodes: int = 1,
    num_ranks: int = 2,
) -> Any:
    """Ask as vLLM does: by position, with tensors on the CPU."""
    return policies["default"].rebalance_experts(
        torch.as_tensor(np.asarray(load)),
        num_slots,
        num_groups,
        num_nodes,
        num_ranks,
        old if old is None or torch.is_tensor(old) else torch.tensor(np.asarray(old).tolist()),
    )


def run_code(code: str, variables: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout

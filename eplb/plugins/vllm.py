"""The vLLM plug-in: saved plans, or plans made live by eplb, in place of vLLM's own policy.

vLLM calls `register` in every process (entry-point group `vllm.general_plugins`). Without the
variables below it does nothing and imports nothing.

====================== =========================================================================
`EPLB_VLLM_PLAN`       plan files, one for each model that vLLM balances (the target, an MTP
                       drafter), joined by `:`
`EPLB_VLLM_PLAN_DIGEST` the placement digests that these plans must have, in the same order,
                       joined by `:`; optional
`EPLB_VLLM_POLICY`     `live`: plan from the loads that vLLM counts
====================== =========================================================================

Made for and tested with vLLM 0.33, which takes policies from a dictionary and names only one in
its configuration, `default`; that entry is replaced. Where another version has no such seam,
`register` raises, for a server that starts all the same would serve without the plan.
"""

import inspect
import os
import sys
from importlib import import_module
from typing import Any

from ..errors import InputError, RefusedError

PLAN, DIGEST, POLICY = "EPLB_VLLM_PLAN", "EPLB_VLLM_PLAN_DIGEST", "EPLB_VLLM_POLICY"

_SEAM = "vllm.distributed.eplb.policy"
_ARGUMENTS = (
    *("weight", "num_replicas", "num_groups", "num_nodes", "num_ranks"),
    "old_global_expert_indices",
)


def register() -> None:
    """Replace vLLM's `default` policy where the environment asks for it; may be called again.

    Raises
    ------
    InputError
        When the variables contradict each other, or a plan cannot be read.
    RefusedError
        When this vLLM has no such seam, or a plan is not what it should be for vLLM.
    """
    plans, digests, policy = (os.environ.get(name) for name in (PLAN, DIGEST, POLICY))
    if plans is None and digests is None and policy is None:
        return
    _check(plans, digests, policy)
    policies = _policies()
    default = policies["default"]
    if getattr(default, "made_by_eplb", False):
        return

    from .vllm_live import plan_live
    from .vllm_policies import Place, SavedPlans, policy_class

    place: Place = plan_live
    if plans is not None:
        place = SavedPlans.read(_split(plans), None if digests is None else _split(digests))
    policies["default"] = policy_class(default, place)


def _check(plans: str | None, digests: str | None, policy: str | None) -> None:
    if policy not in (None, "live"):
        raise InputError(f"{POLICY} is {policy!r}; 'live' is the only policy (or unset it)")
    if plans is not None and policy is not None:
        raise InputError(
            f"both {PLAN} and {POLICY} are set; unset {POLICY} to serve the saved plan, or {PLAN}"
            " to plan live"
        )
    if plans is None and digests is not None:
        raise InputError(f"{DIGEST} is set and {PLAN} is not; name the plan that must have it")
    for name, value in ((PLAN, plans), (DIGEST, digests)):
        if value is not None and not all(_split(value)):
            raise InputError(
                f"{name} is {value!r}, with an empty entry; entries are joined by"
                f" {os.pathsep!r}, and without any {name} must be unset"
            )


def _split(value: str) -> list[str]:
    return value.split(os.pathsep)


def _policies() -> dict[str, Any]:
    """The dictionary that vLLM takes its policy from; its `default` is called as ours will be."""
    try:
        policies = getattr(import_module(_SEAM), "EPLB_POLICIES", None)
    except ImportError as error:
        raise _no_seam(f"importing {_SEAM} failed: {error}") from error
    default = policies.get("default") if isinstance(policies, dict) else None
    if not isinstance(policies, dict) or not isinstance(default, type):
        raise _no_seam(f"{_SEAM} has no dictionary EPLB_POLICIES with a class for 'default'")
    method = getattr(default, "rebalance_experts", None)
    found = tuple(inspect.signature(method).parameters) if callable(method) else ()
    if found != _ARGUMENTS:
        raise _no_seam(f"its default policy is called with {found}, not with {_ARGUMENTS}")
    return policies


def _no_seam(what: str) -> RefusedError:
    version = getattr(sys.modules.get("vllm"), "__version__", "unknown")
    return RefusedError(
        f"this vLLM (version {version}) cannot be given a placement the way vLLM 0.33 can: {what};"
        f" use vLLM 0.33, or unset {PLAN} and {POLICY} to serve with vLLM's own policy"
    )

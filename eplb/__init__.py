"""Where the experts of Mixture-of-Experts models live: plan, check and apply expert placements.

Glossary
--------
logical expert
    An expert of the model, id 0 to E−1 in its layer.
slot
    A place for one expert on a rank; the copy in it is a physical expert.
redundant experts
    S − E per layer: the slots beyond one copy of each expert.
replica count
    Copies of each logical expert.
rank
    One expert-parallel rank, which is one GPU.
load
    Token-expert assignments in a window: a token routed to top_k experts counts top_k times.
window
    The engine steps summed in one row of a trace.
layer, layer id
    A row of the arrays, and the model's own number of that layer.
placement, plan
    Where the experts live; a placement with its score, bound and provenance.
peak load
    The busiest rank's load; the others wait for it.
balancedness
    Mean over largest rank load, of a window and a layer; 1 is perfect. `mean_balancedness` is the
    mean of those ratios, `efficiency` is Σ mean ÷ Σ max.
move
    One expert copy that a rank must receive because it held none.

Axes
----
W windows · L MoE layers · E logical experts · S slots · R ranks · N nodes · K slots per rank ·
G routing groups · C most copies of one expert · T tokens. S = R·K; slot s is on rank s // K; rank
r is on node r // (R / N).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import EplbError as EplbError
    from .errors import InfeasibleError as InfeasibleError
    from .errors import InputError as InputError
    from .errors import RefusedError as RefusedError
    from .findings import inspect as inspect
    from .formats.hardware import read_hardware as read_hardware
    from .formats.maps import export_plan as export_plan
    from .formats.maps import import_map as import_map
    from .formats.model_config import read_model as read_model
    from .formats.plans import read_plan as read_plan
    from .formats.plans import write_plan as write_plan
    from .formats.traces import read_trace as read_trace
    from .formats.traces import write_trace as write_trace
    from .migration import migrate as migrate
    from .model import Model as Model
    from .placement import Placement as Placement
    from .placement import linear as linear
    from .plan import Plan as Plan
    from .problem import Problem as Problem
    from .report import Report as Report
    from .routes import RouteTrace as RouteTrace
    from .solver.solve import solve as solve
    from .topology import Topology as Topology
    from .trace import LoadTrace as LoadTrace

# Loaded on first use, so that `import eplb` and `eplb --help` need no numpy.
_HOME = {
    "EplbError": "errors",
    "InfeasibleError": "errors",
    "InputError": "errors",
    "LoadTrace": "trace",
    "Model": "model",
    "Placement": "placement",
    "Plan": "plan",
    "Problem": "problem",
    "RefusedError": "errors",
    "Report": "report",
    "RouteTrace": "routes",
    "Topology": "topology",
    "export_plan": "formats.maps",
    "import_map": "formats.maps",
    "inspect": "findings",
    "linear": "placement",
    "migrate": "migration",
    "read_hardware": "formats.hardware",
    "read_model": "formats.model_config",
    "read_plan": "formats.plans",
    "read_trace": "formats.traces",
    "solve": "solver.solve",
    "write_plan": "formats.plans",
    "write_trace": "formats.traces",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'eplb' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__

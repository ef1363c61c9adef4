"""A trace replayed under saved plans: what the options of simulate mean there, and its screen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from eplb.errors import InputError
from eplb.formats import files
from eplb.formats.hardware import hardware_bytes
from eplb.formats.model_config import read_model
from eplb.formats.numbers import read_numbers
from eplb.formats.plans import read_plan
from eplb.plan import Plan
from eplb.report import Report
from eplb.simulator.calibration import Calibration
from eplb.simulator.loss import Loss

from . import report_screen, terminal
from .plan_summary import ONE_SLOT, is_moot
from .scoring import score, topology_of
from .timing import Clock, read_clock, say_untimed


def show(options: dict[str, Any]) -> None:
    """Saved plans, the engines' start and the published greedy on the same windows."""
    # A file name may be of bytes that no JSON can hold.
    plans = {
        path.encode(errors="backslashreplace").decode(): read_plan(path)
        for path in options["plans"]
    }
    first = next(iter(plans.values()))
    lost = _lost(options["losses"], first)
    model = None if options["model"] is None else read_model(options["model"])
    clock = read_clock(options, model, topology_of(first, first.placement))
    fitted = None
    if options["calibrate"] is not None:
        clock, fitted = _calibrated(clock, options, first)
    scored = score(
        options,
        plans,
        lost=lost,
        timer=None if clock is None else clock.on,
        dispatch=options["dispatch"],
        active_slots=options["active_slots"],
    )
    name, report = next(iter(scored.reports.items()))
    if clock is not None:
        report = replace(report, constants=clock.constants())
    say_untimed(report, clock, options["quiet"])
    others = {**scored.reports, **scored.beside}
    del others[name]
    facts: dict[str, Any] = {
        "plan": name,
        "in_sample": scored.in_sample,
        "left_out": scored.left_out,
        "beside": {other: other_report.summary() for other, other_report in others.items()},
    }
    if scored.traffic_basis is not None:
        facts["traffic_basis"] = scored.traffic_basis
    if scored.losses:
        facts["what_if"] = [_loss(*case) for case in scored.losses.items()]
    if fitted is not None:
        facts["calibration"] = _fit(fitted)
    if report_screen.write(options, report, facts):
        return
    rows = [("scored", _windows(report, scored.left_out, scored.in_sample))]
    if is_moot(first.placement.slots_per_rank, topology_of(first, first.placement)):
        rows.append(("note", ONE_SLOT))
    if fitted is not None:
        rows += _fit_text(fitted)
    terminal.facts(rows)
    report_screen.table({**scored.reports, **scored.beside})
    terminal.facts([*report_screen.further(report, scored.traffic_basis), *(
        (f"lose {lost['lose']}" , _loss_text(lost, report))
        for lost in facts.get("what_if", ())
    )])  # fmt: skip


def _calibrated(
    clock: Clock | None, options: dict[str, Any], plan: Plan
) -> tuple[Clock, Calibration]:
    """The clock with constants fitted to what was measured under the plan."""
    assert clock is not None  # --calibrate without --hardware was refused
    measured = np.array(read_numbers(options["calibrate"], "the step time", "window"))
    if options["save_hardware"] is not None:
        files.check_output(options["save_hardware"], options["force"])
    served: list[tuple[Any, int]] = []

    def keep(slot_load: Any, window_steps: int) -> Any:
        served.append((slot_load, window_steps))
        return np.zeros(len(slot_load))

    every = {**options, "in_sample": True, "quiet": True}
    report = score(
        every, {"plan": plan}, beside=False, timer=lambda _: keep, dispatch=options["dispatch"]
    ).reports["plan"]
    if report.step_seconds is None:
        raise InputError(
            "the trace does not say how many engine steps a window has (window_steps), so its"
            " windows cannot be compared with seconds of a step"
        )
    if len(measured) != len(report.windows):
        raise InputError(
            f"{options['calibrate']} has {len(measured)} step times and the trace"
            f" {len(report.windows)} windows; one for each is expected"
        )
    clock, fitted = clock.calibrated(served, measured)
    if options["save_hardware"] is not None:
        data = hardware_bytes(clock.hardware)
        files.write_bytes(options["save_hardware"], data, options["force"])
    return clock, fitted


def _fit(fitted: Calibration) -> dict[str, Any]:
    """What the report says of a calibration."""
    return {
        "error": fitted.error, "error_before": fitted.error_before, "fitted": fitted.fitted,
        "relative_standard_error": fitted.uncertainty, "undetermined": fitted.undetermined,
    }  # fmt: skip


def _fit_text(fitted: Calibration) -> list[tuple[str, str]]:
    rows = [
        ("calibrated", f"{fitted.error:.1%} root mean square error of step times, from"
                       f" {fitted.error_before:.1%}"),
    ]  # fmt: skip
    for name, value in fitted.fitted.items():
        error = fitted.uncertainty.get(name)
        rows.append(("", f"{name} {value:.4g}" + (f" ± {error:.1%}" if error else "")))
    rows += [("", f"{name} not fitted: {why}") for name, why in fitted.undetermined.items()]
    return rows


def _lost(cases: Sequence[str], plan: Plan) -> dict[str, list[int]]:
    """The GPUs of each `lose:GPU` and `lose-node:N`, by what is lost."""
    own = plan.placement
    per_node = own.num_ranks // own.num_nodes
    lost = {}
    for case in cases:
        verb, _, number = case.partition(":")
        if verb not in ("lose", "lose-node") or not number.isdecimal():
            raise InputError(
                f"--what-if {case}; lose:GPU or lose-node:NODE, by number, is expected"
            )
        index = int(number)
        if verb == "lose":
            lost[f"GPU {index}"] = [index]
        elif index >= own.num_nodes:
            raise InputError(f"--what-if {case}; the nodes are numbered 0 to {own.num_nodes - 1}")
        else:
            lost[f"node {index}"] = list(range(index * per_node, (index + 1) * per_node))
    return lost


def _loss(name: str, case: tuple[Loss, float, Report]) -> dict[str, Any]:
    """What the report says of one loss."""
    loss, share, report = case
    lost = [
        {"layer": int(report.layer_ids[layer]), "expert": int(expert)}
        for layer, expert in loss.lost
    ]
    return {"lose": name, "lost_load_share": share, "summary": report.summary(), "lost": lost}


def _loss_text(lost: dict[str, Any], report: Report) -> str:
    before = report.summary()["mean_balancedness"]
    after = lost["summary"]["mean_balancedness"]
    layers = len({entry["layer"] for entry in lost["lost"]})
    gone = (
        f"{len(lost['lost'])} experts of {layers} layers have no copy left,"
        f" {lost['lost_load_share']:.1%} of all load"
        if lost["lost"]
        else "every expert has a copy left"
    )
    return f"{gone}; the rest at {after:.3f} mean balancedness, from {before:.3f}"


def _windows(report: Report, left_out: int, in_sample: bool) -> str:
    """Which windows were scored, in a line."""
    text = f"{len(report.windows)} windows × {len(report.layer_ids)} layers"
    if in_sample:
        return f"{text}, in-sample: also those that a plan was made from"
    if left_out:
        return f"{text}; {left_out} that a plan was made from are left out"
    return text

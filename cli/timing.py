"""Modelled seconds: what the options of the time model make."""

from collections.abc import Mapping
from copy import copy
from typing import TYPE_CHECKING, Any

import click

from . import terminal
from .options import Command, all_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from eplb._arrays import Floats
    from eplb.hardware import Hardware
    from eplb.model import Model
    from eplb.placement import Placement
    from eplb.report import Report
    from eplb.simulator.calibration import Calibration
    from eplb.simulator.replay import Timer
    from eplb.topology import Topology


def time_options(command: Command) -> Command:
    """The time model."""
    options = [
        click.option(
            "--hardware", default=None, metavar="NAME|FILE",
            help="Model the seconds of steps and moves with these constants: h100-ib400,"
            " h200-ib400, gb200-nvl72, mi355x, or a YAML file; needs --model.",
        ),
        click.option(
            "--direct", is_flag=True,
            help="Send a token to each of its experts by itself, as low-latency kernels do, rather"
            " than once to a node.",
        ),
        click.option(
            "--micro-batches", type=click.IntRange(1, 2), default=1, show_default=True,
            metavar="1|2",
            help="2: one half of a step computes while the other's tokens travel.",
        ),
        click.option(
            "--calibrate", default=None, metavar="FILE",
            help="Fit the constants to measured seconds of a step, a list with one number for each"
            " window of the trace under the first plan.",
        ),
        click.option(
            "--save-hardware", default=None, metavar="FILE",
            help="Write the fitted constants, for --hardware.",
        ),
    ]  # fmt: skip
    return all_of(options, command)


class Clock:
    """The seconds of steps and of moves on one hardware, for one model; all modelled."""

    def __init__(
        self, hardware: "Hardware", model: "Model", topology: "Topology", options: Mapping[str, Any]
    ) -> None:
        from eplb.simulator.timing import expert_shape

        hardware.check(topology)
        self.hardware, self.topology = hardware, topology
        self._shape = expert_shape(model)
        self._relayed, self._split = not options["direct"], options["micro_batches"]

    def on(self, topology: "Topology") -> "Timer":
        """What models the seconds of steps on other machines."""
        clock = copy(self)
        clock.topology = topology
        return clock.steps

    def steps(self, slot_load: "Floats", window_steps: int) -> "Floats":
        """Seconds of the mean step of each window, (W,), from the tokens of slots, (W, L, S)."""
        return self.timed(self.hardware)(slot_load, window_steps)

    def timed(self, hardware: "Hardware") -> "Timer":
        """The same with other constants."""
        from eplb.simulator.timing import overlapped_seconds, step_seconds, window_timing

        def seconds(slot_load: "Floats", window_steps: int) -> "Floats":
            timing = window_timing(
                slot_load, window_steps, self.topology, self._shape, hardware,
                relayed=self._relayed, split=self._split,
            )  # fmt: skip
            return step_seconds(timing) if self._split == 1 else overlapped_seconds(timing)

        return seconds

    def moves(self, old: "Placement", new: "Placement") -> float:
        """Seconds to get from one placement to another."""
        from eplb.simulator.moving import moving

        bytes_each = self._shape.expert_bytes
        return moving(old, new, self.topology, bytes_each, self.hardware).seconds

    def calibrated(
        self, served: "Sequence[tuple[Floats, int]]", measured: "Floats"
    ) -> "tuple[Clock, Calibration]":
        """The clock whose constants give the `measured` seconds best, (n,), of n windows with these
        loads of slots and steps."""
        import numpy as np

        from eplb.simulator.calibration import calibrate

        def model(hardware: "Hardware") -> "Floats":
            timer = self.timed(hardware)
            return np.concatenate([timer(load, steps) for load, steps in served])

        found = calibrate(model, measured, self.hardware)
        clock = copy(self)
        clock.hardware = found.hardware
        return clock, found

    def constants(self) -> dict[str, Any]:
        """The constants, as a report has them."""
        return {
            "hardware": self.hardware.name,
            **{name: c._asdict() for name, c in self.hardware.constants.items()},
        }


def say_untimed(report: "Report", clock: "Clock | None", quiet: bool) -> None:
    """Remark on seconds that were asked for and cannot be modelled."""
    if clock is not None and report.step_seconds is None:
        terminal.remark(
            "the trace does not say how many engine steps each window has (window_steps), so no"
            " seconds are modelled",
            quiet,
        )


def read_clock(
    options: Mapping[str, Any], model: "Model | None", topology: "Topology"
) -> "Clock | None":
    """The clock that the options name; None without --hardware.

    Raises
    ------
    InputError
        When there is no --model to tell the size of experts.
    """
    from eplb.errors import InputError
    from eplb.formats.hardware import read_hardware

    if options["hardware"] is None:
        given = [key for key in ("direct", "calibrate", "save_hardware") if options[key]]
        if options["micro_batches"] != 1:
            given.append("micro_batches")
        if given:
            name = given[0].replace("_", "-")
            raise InputError(f"--{name} is of the time model, which needs --hardware")
        return None
    if options["save_hardware"] and not options["calibrate"]:
        raise InputError("--save-hardware writes what --calibrate fitted")
    if model is None:
        raise InputError("--hardware needs --model, which tells the size of experts")
    return Clock(read_hardware(options["hardware"]), model, topology, options)

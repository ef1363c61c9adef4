"""`python -m benchmarks [NAME]...`: measure and print the project's figures, all or by name."""

import os
import platform
import sys
from importlib.metadata import version

from . import first_plan, planner, reading, reading_trtllm, recording, serving

BENCHMARKS = {
    "examples": first_plan.examples,
    "parity": first_plan.parity,
    "balance": first_plan.balance,
    "shell": first_plan.shell,
    "startup": first_plan.startup,
    "compilation": first_plan.compilation,
    "reading": first_plan.reading,
    "reading-dumps": reading.dumps,
    "reading-statistics": reading_trtllm.reading_statistics,
    "recording": recording.recording,
    "serving": serving.serving,
    "held-out": planner.held_out,
    "walk-forward": planner.walk_forward,
    "moving": planner.moving,
    "node-rules": planner.node_rules,
    "proof": planner.proof,
    "speed": planner.speed,
    "scale": planner.scale,
}


def main(names: list[str]) -> None:
    """Run the named benchmarks, or all."""
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(f"no benchmark is called {unknown[0]!r}; {', '.join(BENCHMARKS)} are known")
    print(
        f"eplb {version('eplb')}, Python {platform.python_version()}, {platform.machine()},"
        f" {os.cpu_count()} cores"
    )
    for name in names or BENCHMARKS:
        print(f"\n## {name}\n\n{BENCHMARKS[name].__doc__}", flush=True)
        BENCHMARKS[name]()


if __name__ == "__main__":
    main(sys.argv[1:])

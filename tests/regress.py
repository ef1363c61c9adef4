"""`make regress`: is the planner still as good as it was? `eplb check` on every sample.

Every sample is planned afresh, with a fixed seed and without a clock, and scored against the report
in tests/golden/regress. Where a trace is long enough the last windows are kept from the planner and
are what is scored; else those that were planned for are.
"""

import argparse
import os
import sys
from pathlib import Path

from .helpers import ROOT, Ending, eplb

# The options of planning, and those of scoring.
CASES: dict[str, tuple[list[str], list[str]]] = {
    "tiny-dsv3.npz": (["--gpus", "8", "--windows", ":24"], []),
    "tiny-dsv3-routes.npz": (["--gpus", "16", "--nodes", "4"], ["--in-sample"]),
    "synthetic-mixtral.json": (["--gpus", "8", "--windows", ":24"], []),
    "synthetic-deepseek-v3.npz": (["--gpus", "32", "--nodes", "4"], ["--in-sample"]),
    "synthetic-qwen3-235b.npz": (["--gpus", "16"], ["--in-sample"]),
}


def baseline(sample: str) -> str:
    """The report that a sample is compared with."""
    return f"tests/golden/regress/{sample.partition('.')[0]}.json"


def regress(sample: str, folder: str = "build/regress", golden: bool = False) -> Ending:
    """How `eplb check` of a fresh plan for a sample ends, or, for a new baseline, `eplb simulate`;
    the plan is left in `folder`, and all paths are from the root of the project."""
    planning, scoring = CASES[sample]
    trace, plan = f"sample_loads/{sample}", f"{folder}/{sample.partition('.')[0]}.json"
    planned = eplb("plan", trace, *planning, "--seed", 0, "-q", "-o", plan, "--force")
    if planned.code:
        return planned
    if golden:
        target = ("-o", baseline(sample), "--force")
        return eplb("simulate", trace, "--plan", plan, *scoring, *target)
    return eplb("check", trace, "--plan", plan, *scoring, "--baseline", baseline(sample))


def main() -> int:
    """Check every sample; 1 when one of them got worse."""
    parser = argparse.ArgumentParser(prog="python -m tests.regress", description=__doc__)
    parser.add_argument("--golden", action="store_true", help="rewrite tests/golden/regress")
    golden = parser.parse_args().golden
    os.chdir(ROOT)
    Path("build/regress").mkdir(parents=True, exist_ok=True)
    worst, advised = 0, False
    for sample in CASES:
        ending = regress(sample, golden=golden)
        print(ending.out, end="\n", flush=True)
        if ending.code:
            print(ending.err, file=sys.stderr, end="", flush=True)
        worst, advised = max(worst, ending.code), advised or "\nnext  " in ending.out
    if advised:
        print("to make all of this the new baselines: make golden")
    return worst


if __name__ == "__main__":
    sys.exit(main())

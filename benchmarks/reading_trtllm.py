"""Reading TensorRT-LLM's expert statistics: against the library that reads the files, and memory.

`EPLB_STATISTICS_MB` says how large the recording is, 256 by default.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from eplb.formats import files
from eplb.formats.recorders import trtllm
from eplb.formats.source import Hints, Source

from .report import medians, seconds, table

_RANKS, _LAYERS, _EXPERTS = 8, range(3, 61), 256
# The peak of a process by itself: what the system reports of a child includes its parent's.
_PEAK = 'print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])'
_IMPORT = """import sys, safetensors.numpy
from eplb.formats.recorders import trtllm
from eplb.formats.source import Hints, Source
"""
_STEPS = {
    "imports alone": "",
    "safetensors, file by file": "for path in sys.argv[2:]: safetensors.numpy.load_file(path)\n",
    "eplb": "trtllm.read(Source(sys.argv[1]), Hints())\n",
}


def reading_statistics() -> None:
    """A folder of statistics of 8 ranks: reading it against loading its files with safetensors."""
    from safetensors.numpy import load_file

    size = int(os.environ.get("EPLB_STATISTICS_MB", "256"))
    with tempfile.TemporaryDirectory() as folder:
        paths = _write(Path(folder), size)
        largest = max(map(os.path.getsize, paths)) / 2**20

        def load() -> None:
            for path in paths:
                load_file(path)

        def read() -> None:
            with files.paused_gc():
                trtllm.read(Source(folder), Hints())

        plain, ours = medians([lambda: seconds(load), lambda: seconds(read)], repeats=5)
        peaks = {name: _peak(_IMPORT + step, folder, *paths) for name, step in _STEPS.items()}
    table(
        f"Reading statistics of {_RANKS} ranks, {size} MB, median of 5 in turns",
        ["step", "seconds", "MB/s", "rate", "wanted"],
        [
            ["safetensors, file by file", f"{plain:.2f}", f"{size / plain:.0f}", "1.00", ""],
            ["eplb", f"{ours:.2f}", f"{size / ours:.0f}", f"{plain / ours:.2f}", "0.5 or more"],
        ],
    )
    table(
        f"Peak memory; the largest file has {largest:.0f} MB",
        ["process", "MB", "above imports"],
        [[name, f"{peak:.0f}", f"{peak - peaks['imports alone']:.0f}"]
         for name, peak in peaks.items()],
    )  # fmt: skip


def _write(folder: Path, size: int) -> list[str]:
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    iterations = size * 2**20 // (8 * _EXPERTS * len(_LAYERS) * _RANKS)
    meta = {"num_experts": _EXPERTS, "num_experts_per_token": 8}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    paths = []
    for rank in range(_RANKS):
        counts = rng.poisson(4, (iterations, len(_LAYERS), _EXPERTS))
        tensors = {
            f"{100 + i}_{layer}": counts[i, row]
            for i in range(iterations)
            for row, layer in enumerate(_LAYERS)
        }
        paths.append(str(folder / f"rank{rank}.safetensors"))
        save_file(tensors, paths[-1])
    return paths


def _peak(program: str, *args: str) -> float:
    """Peak resident memory of a process that runs `program`, in MB."""
    command = [sys.executable, "-c", program + _PEAK, *args]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return int(out) / 1024

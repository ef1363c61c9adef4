"""Reading what engines record, against what merely loading the files costs.

`EPLB_READING_MB` is the size of the recording in MB, 256 by default.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from eplb.formats.traces import read_trace

from .report import medians, seconds, table

# DeepSeek-V3 with 32 redundant experts.
_LAYERS, _EXPERTS, _SLOTS, _RANKS = 61, 256, 288, 8


def dumps() -> None:
    """SGLang dumps of mode per_pass, 8 ranks: reading them against torch.load, and the memory."""
    size = int(os.environ.get("EPLB_READING_MB", "256"))
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), size)
        files = sorted(Path(folder).iterdir())
        whole, largest = sum(_megabytes(file) for file in files), max(map(_megabytes, files))
        plain, ours = medians(
            [
                lambda: seconds(lambda: [_load(file) for file in files]),
                lambda: seconds(lambda: read_trace(folder)),
            ],
            repeats=3,
        )
        reader = "import torch; from eplb.formats.traces import read_trace"
        bare = _peak_mb(reader)
        peak = _peak_mb(f"{reader}; read_trace({folder!r})")
    table(
        f"Reading {whole:.0f} MB of SGLang dumps in {_RANKS} files, median of 3 in turns",
        ["step", "seconds", "MB/s", "rate", "wanted"],
        [
            ["torch.load alone", f"{plain:.2f}", f"{whole / plain:.0f}", "1.00", ""],
            ["read_trace of the folder", f"{ours:.2f}", f"{whole / ours:.0f}",
             f"{plain / ours:.2f}", "over 0.5"],
        ],
    )  # fmt: skip
    table(
        "Peak memory of a process of its own",
        ["process", "MB", "wanted"],
        [
            ["the largest file", f"{largest:.0f}", ""],
            ["imports alone", f"{bare:.0f}", ""],
            ["read_trace of the folder", f"{peak:.0f}", ""],
            ["more than imports", f"{peak - bare:.0f}", "under the largest file + 100"],
        ],
    )


def _write(folder: Path, megabytes: int) -> None:
    """A recording of so many MB as the recorder writes it, with random counts."""
    rng = torch.Generator().manual_seed(0)
    placement = (torch.arange(_SLOTS) % _EXPERTS).repeat(_LAYERS, 1)
    num_passes = max(1, megabytes * 10**6 // (_RANKS * _LAYERS * _SLOTS * 4))
    for rank in range(_RANKS):
        counts = torch.randint(
            0, 50, (num_passes, _LAYERS, _SLOTS), dtype=torch.int32, generator=rng
        )
        records = [
            {
                "forward_pass_id": number, "rank": rank, "gatherer_key": "primary",
                "global_physical_count": count.clone(),
            }
            for number, count in enumerate(counts)
        ]  # fmt: skip
        torch.save(
            {"records": records, "last_physical_to_logical_map": placement},
            folder / f"expert_distribution_recorder_1767225600.{rank}_{rank}.pt",
        )


def _load(file: Path) -> None:
    torch.load(file, map_location="cpu", weights_only=True)


def _megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


def _peak_mb(code: str) -> float:
    """The peak memory of a Python process that runs `code`, files it has mapped included.

    The process says it itself: what the system tells its parent may be the parent's own peak.
    """
    report = "print([line for line in open('/proc/self/status') if line.startswith('VmHWM')][0])"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{report}"], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-2]) / 1024

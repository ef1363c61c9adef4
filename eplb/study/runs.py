"""The points of sweeps, made one after another, in processes, or on a Ray cluster.

All three make the same points and hand each over as it is done, in whatever order; what comes of a
sweep does not depend on which.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context, parent_process
from typing import Any, NamedTuple, TypeAlias

from ..errors import InfeasibleError, InputError
from .sweep import Point, Setting, Study, measure

# Seconds between looks at whether to stop.
_POLL_SECONDS = 0.1


class Task(NamedTuple):
    """The point of a setting, of one of several studies by its number."""

    study: int
    setting: Setting


class Skipped(NamedTuple):
    """A point that no placement can have, and why."""

    reason: str


# The number of the task among all, and what came of it.
Done: TypeAlias = tuple[int, Point | Skipped]
Stop: TypeAlias = Callable[[], bool]


def run(
    studies: Sequence[Study],
    tasks: Sequence[Task],
    stop: Stop,
    num_jobs: int = 1,
    use_ray: bool = False,
) -> Iterator[Done]:
    """Every task as it is done; once `stop()` is true, no more than those that are.

    Raises
    ------
    InputError
        When the strategy cannot do what is asked for, Ray is asked for and missing, or a process
        died.
    """
    if use_ray:
        return _on_ray(studies, tasks, stop)
    num_jobs = min(num_jobs, len(tasks))
    if num_jobs <= 1:
        return _in_turn(studies, tasks, stop)
    return _in_processes(studies, tasks, stop, num_jobs)


def attempt(study: Study, setting: Setting, stop: Stop | None = None) -> Point | Skipped | None:
    """The point of a setting; None when `stop()` cut it short."""
    was_cut = False

    def asked() -> bool:
        nonlocal was_cut
        was_cut = was_cut or (stop is not None and stop())
        return was_cut

    try:
        point = measure(study, setting, asked)
    except InfeasibleError as error:
        return Skipped(str(error))
    return None if was_cut else point


def _in_turn(studies: Sequence[Study], tasks: Sequence[Task], stop: Stop) -> Iterator[Done]:
    for number, task in enumerate(tasks):
        outcome = None if stop() else attempt(studies[task.study], task.setting, stop)
        if outcome is None:
            return
        yield number, outcome


def _in_processes(
    studies: Sequence[Study], tasks: Sequence[Task], stop: Stop, num_jobs: int
) -> Iterator[Done]:
    context = get_context("spawn")  # threads of a forked process could wait for locks for ever
    halt, next_seat = context.Event(), context.Value("i", 0)
    cores = sorted(os.sched_getaffinity(0))
    shares = [set(cores[seat::num_jobs]) or set(cores) for seat in range(num_jobs)]
    pool = ProcessPoolExecutor(num_jobs, context, _take_seat, (studies, halt, next_seat, shares))
    try:
        with _ctrl_c_kept_from_children():
            number_of = {pool.submit(_work, task): n for n, task in enumerate(tasks)}
        pending = set(number_of)
        while pending:
            if stop():
                halt.set()
                pending = {future for future in pending if not future.cancel()}
            done, pending = wait(pending, _POLL_SECONDS, FIRST_COMPLETED)
            for future in sorted(done, key=number_of.__getitem__):
                outcome = future.result()
                if outcome is not None:
                    yield number_of[future], outcome
    except BrokenProcessPool:
        raise InputError(
            "a process that planned points died, perhaps for want of memory; --jobs 1 needs least"
        ) from None
    finally:
        halt.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ctrl_c_kept_from_children() -> Iterator[None]:
    """Processes started inside inherit that Ctrl-C is blocked: it is for this one to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# What a process that plans points was given when it started.
_given: dict[str, Any] = {}


def _take_seat(
    studies: Sequence[Study], halt: Any, next_seat: Any, shares: Sequence[set[int]]
) -> None:
    """Begin a process: it gets its share of the cores, as each plans with all cores it has."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with next_seat.get_lock():
        seat = next_seat.value
        next_seat.value += 1
    os.sched_setaffinity(0, shares[seat % len(shares)])
    _given.update(studies=studies, stop=halt.is_set)


def _end_with_parent() -> None:
    """End this process when its parent is gone, which may have been killed before it could ask."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(task: Task) -> Point | Skipped | None:
    return attempt(_given["studies"][task.study], task.setting, _given["stop"])


def _on_ray(studies: Sequence[Study], tasks: Sequence[Task], stop: Stop) -> Iterator[Done]:
    """On the cluster that RAY_ADDRESS names or that runs here, else on one started for it."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray = import_module("ray")
    except ImportError:
        raise InputError("--ray needs Ray: pip install 'eplb[ray]'") from None
    is_ours = not ray.is_initialized()
    if is_ours:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    number_of: dict[Any, int] = {}
    try:
        shared = [ray.put(study) for study in studies]
        there = ray.remote(attempt)
        number_of = {
            there.remote(shared[task.study], task.setting): n for n, task in enumerate(tasks)
        }
        while number_of and not stop():
            done, _ = ray.wait(list(number_of), timeout=_POLL_SECONDS)
            for reference in done:
                number = number_of.pop(reference)
                yield number, _fetched(ray, reference)
    finally:
        for reference in number_of:
            ray.cancel(reference, force=True)
        if is_ours:
            ray.shutdown()


def _fetched(ray: Any, reference: Any) -> Point | Skipped:
    """What a task of Ray gave, or raise what it raised, without Ray's account of where."""
    try:
        outcome: Point | Skipped = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return outcome

"""Points in turn, in processes, on Ray: the same whichever way."""

from collections.abc import Sequence
from typing import Any

import pytest

from eplb.errors import InputError
from eplb.solver.layer_planner import Settings
from eplb.study.runs import Done, Skipped, Task, attempt, run
from eplb.study.sweep import Setting, Study, study_of

from ..helpers import problem, random_loads

QUICK = Settings(effort=0.1)
TASKS = [Task(study, Setting(4, 1, count)) for study in (0, 1) for count in (0, 3, 4, 8)]


def _studies(**how: Any) -> list[Study]:
    """Two small traces, the second of them short."""
    return [
        study_of(problem(random_loads(seed, windows, 2, 8), 4, 2), settings=QUICK, **how)
        for seed, windows in ((0, 10), (1, 3))
    ]


def _never() -> bool:
    return False


def _in_order(done: Sequence[Done]) -> list[Any]:
    return [outcome for _, outcome in sorted(done, key=lambda pair: pair[0])]


def test_every_task_is_done_or_left_out_with_a_reason() -> None:
    """3 redundant experts on 4 GPUs cannot be."""
    done = list(run(_studies(), TASKS, _never))
    assert [number for number, _ in done] == list(range(8))
    skipped = [outcome for _, outcome in done if isinstance(outcome, Skipped)]
    assert len(skipped) == 2
    assert "--redundant 0 or 4 would" in skipped[0].reason


def test_processes_change_nothing() -> None:
    """More of them than cores, fewer than points."""
    alone = _in_order(list(run(_studies(), TASKS, _never)))
    assert _in_order(list(run(_studies(), TASKS, _never, num_jobs=3))) == alone


def test_ray_changes_nothing() -> None:
    """On a cluster that is started for it and ended after it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (eplb[ray])")
    alone = _in_order(list(run(_studies(), TASKS, _never)))
    assert _in_order(list(run(_studies(), TASKS, _never, use_ray=True))) == alone
    assert not ray.is_initialized()


def test_ray_hands_errors_on_as_they_are() -> None:
    """Without its own account of where they happened."""
    pytest.importorskip("ray", reason="Ray is not installed (eplb[ray])")
    with pytest.raises(InputError, match=r"^strategy deepseek knows nothing of --survive"):
        list(run(_surviving(), TASKS, _never, use_ray=True))


def test_ray_is_asked_for_by_name_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the extra that brings it."""
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'eplb\[ray\]'"):
        list(run(_studies(), TASKS, _never, use_ray=True))


def _surviving() -> list[Study]:
    one = problem(random_loads(0, 3, 2, 8), 4, 2, survive=1)
    return [Study(one, strategy="deepseek")] * 2


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_what_no_point_can_have_ends_the_sweep(num_jobs: int) -> None:
    """An option that the strategy does not know is no matter of one point."""
    with pytest.raises(InputError, match="strategy deepseek knows nothing of --survive"):
        list(run(_surviving(), TASKS, _never, num_jobs))


def test_once_stopped_no_point_is_begun() -> None:
    """Those that were done stay."""
    done: list[Done] = []
    for outcome in run(_studies(), TASKS, lambda: len(done) >= 2):
        done.append(outcome)
    assert [number for number, _ in done] == [0, 1]


def test_once_stopped_processes_end() -> None:
    """What they had under way is given up; what is handed over is whole."""
    whole = dict(run(_studies(), TASKS, _never))
    done: list[Done] = []
    for outcome in run(_studies(), TASKS, lambda: len(done) >= 1, num_jobs=2):
        done.append(outcome)
    assert 1 <= len(done) < len(TASKS)
    assert all(whole[number] == outcome for number, outcome in done)


def test_a_point_that_was_cut_short_is_none() -> None:
    """Half a search is no answer."""
    asked = iter([False, True, True, True])
    study = _studies()[0]
    assert attempt(study, Setting(4, 1, 4), lambda: next(asked, True)) is None
    assert isinstance(attempt(study, Setting(4, 1, 4)), dict)


def test_a_process_that_dies_is_an_error_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel kills the largest when memory ends."""
    monkeypatch.setattr("eplb.study.runs._work", _die)
    with pytest.raises(InputError, match="--jobs 1"):
        list(run(_studies(), TASKS, _never, num_jobs=2))


def _die(_task: Task) -> None:
    import os

    os._exit(9)

"""Recordings by forward pass: how passes are summed into windows."""

from ...errors import InputError

# A pass is a handful of tokens and a recording has thousands of them; windows as few as this keep
# the drift of the traffic and leave sampling noise small.
MOST_WINDOWS = 128


def pass_windows(num_passes: int, window_steps: int | None) -> tuple[int, int, list[str]]:
    """How many passes a window has, how many windows there are, and remarks.

    By default there are as few passes a window as give at most `MOST_WINDOWS`; a partial last
    window is dropped.

    Raises
    ------
    InputError
        When there are fewer passes than a window is to have.
    """
    size = window_steps or max(1, -(-num_passes // MOST_WINDOWS))
    count = num_passes // size
    if not count:
        raise InputError(
            f"a window of {size} steps is longer than the recording, which has {num_passes} passes"
        )
    notes = []
    if size > 1 and window_steps is None:
        notes.append(
            f"{num_passes} forward passes are summed into {count} windows of {size};"
            " --window-steps chooses"
        )
    if left := num_passes - count * size:
        notes.append(f"the last {left} of {num_passes} passes fill no window and are left aside")
    return size, count, notes

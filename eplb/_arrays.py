"""Read-only arrays, which every frozen type of the library holds, and their short type names."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.integer[Any]]
Bools: TypeAlias = npt.NDArray[np.bool_]
Numbers: TypeAlias = npt.NDArray[Any]
# An array that may be given as None and is filled in at birth: it always is an array afterwards.
Filled: TypeAlias = Any


def frozen(array: npt.ArrayLike, dtype: npt.DTypeLike) -> Numbers:
    """Return `array` as a read-only C-contiguous array of `dtype`.

    It is taken over as it is when it already is all of that, and copied otherwise, so that nobody
    who holds the original can change a value that was checked.
    """
    given = np.asarray(array)
    if given.dtype == dtype and given.flags.c_contiguous and not given.flags.writeable:
        return given
    own = np.array(given, dtype=dtype, order="C", copy=True)
    own.setflags(write=False)
    return own

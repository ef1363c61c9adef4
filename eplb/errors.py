"""The errors a user can meet.

::

    EplbError (ValueError)
    ├── InputError        input that cannot be read or makes no sense      exit code 2
    ├── InfeasibleError   sizes or limits that no placement can meet       exit code 3
    └── RefusedError      refused for safety: made for something else      exit code 4

Each message says what was found, what was expected, where, and the nearest thing that would work.
"""


class EplbError(ValueError):
    """Base of every error that a user's input, options or files can cause."""


class InputError(EplbError):
    """Input that cannot be read or makes no sense, or an output that cannot be written."""


class InfeasibleError(EplbError):
    """Sizes, budgets or limits that no placement can meet; says the nearest that one can."""


class RefusedError(EplbError):
    """Refused for safety: made for another model, layer set, expert count or topology."""

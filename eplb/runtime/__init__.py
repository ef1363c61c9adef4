"""Live torch models; the only package that imports torch when it is loaded."""

from .recorder import LoadRecorder as LoadRecorder

__all__ = ["LoadRecorder"]

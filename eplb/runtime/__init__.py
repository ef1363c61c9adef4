"""Live torch models; the only package that imports torch when it is loaded."""

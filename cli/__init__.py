"""The command line: read, one library call, render. Only this package knows click and rich."""

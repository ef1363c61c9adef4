"""Files to and from the types of the library; nothing else opens a trace, map or plan file.

`recorders/` reads what engines recorded, `engines/` reads and writes the placement maps that they
start with; `traces` and `plans` are the doors to both.
"""

"""The placement maps that engines start with, one module an engine; `formats.maps` is the door.

Every module has `NAME`, `DESCRIPTION`, `ENDINGS` (the endings of its files, the default first),
`write(plan, name, model)`, which returns the bytes of a file of that name with what goes with it,
and `read(source)`, which returns the rows that such a file holds.
"""

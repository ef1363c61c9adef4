"""What engines and tools record, one module a source.

Every module has `NAME`, `DESCRIPTION`, `detect(source)`, which looks at content and not only at
names, and `read(source, hints)`, which returns a trace and remarks on how it was read.
"""

"""Files to and from the types of the library; nothing else opens a trace, map or plan file.

Every trace format is a module with `NAME`, `DESCRIPTION`, `detect(content)` and
`read(content, num_experts)`.
"""

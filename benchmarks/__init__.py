"""Benchmarks: quality and speed of the planner beside its peers."""

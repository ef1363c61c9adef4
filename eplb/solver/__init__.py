"""From a problem to a plan: pure, seeded and silent; one algorithm a file."""

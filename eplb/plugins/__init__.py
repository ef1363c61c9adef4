"""What other programs load from this package."""

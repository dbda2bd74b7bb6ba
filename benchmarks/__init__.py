"""What it costs: ``python -m benchmarks calls|codec|all``, from the root of the repository."""

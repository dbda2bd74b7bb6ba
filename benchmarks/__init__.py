"""What it costs: ``python -m benchmarks``, from the root of the repository.

`rows` says what is measured, `meters` how, and `runner` in which order. `stage` starts the BEAMs
and the Python nodes that take part. `figures` makes medians and ratios of what was measured,
`results` keeps them in a file, and `report`, `charts` and `compare` show them.
"""

"""Examples: each file runs by itself, `python examples/NAME.py`; the networks in them serve benchmarks and tests too."""

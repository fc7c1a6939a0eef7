"""Measuring and judging kernels: the gate, the clock, plain PyTorch forms and small rows, for doctor and benchmarks."""

"""Benchmarks: each module runs alone, `python -m benchmarks.NAME`, and prints ratios within one run."""

"""The benchmarks of experiments.benchmark: data.py, inference.py; server.py: what serving adds."""

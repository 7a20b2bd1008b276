"""What `scripts/benchmark_speed.py` is made of."""

"""Benchmarks in their official files, and running a model on them."""

"""Benchmarks of pyattn against other libraries: ``python -m benchmarks --help``."""

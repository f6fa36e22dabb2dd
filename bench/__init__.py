"""Benchmarks, and proofs that take too long for a test. Run them from a checkout."""

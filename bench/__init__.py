"""Proofs and timings that take too long for a test."""

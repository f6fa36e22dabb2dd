"""The read API under `/v1`: what programs read about batches, essays, messages and events."""

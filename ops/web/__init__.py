"""The pages, health and metrics over HTTP."""

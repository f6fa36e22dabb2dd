"""Causes by theme. Each module here is read; each makes its causes with `cause`."""

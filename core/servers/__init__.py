"""Postgres, Redis and the broker: their URLs and certificates, and what they must provide."""

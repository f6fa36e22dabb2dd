"""The library: what a batch is, and how its promises are kept. No Celery in it."""

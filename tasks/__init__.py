"""The Celery program: `celery -A tasks worker` finds its app here."""

from tasks.app import app as celery

__all__ = ["celery"]

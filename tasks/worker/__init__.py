"""How our workers differ from Celery's. Nothing here knows what an essay is."""

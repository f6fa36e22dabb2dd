"""How our workers differ from Celery's: README.md has the reasons. Nothing here knows an essay."""

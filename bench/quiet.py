"""Our app without Celery's own events, which has no option of `celery worker`."""

from tasks.app import app

app.conf.worker_send_task_events = False

"""`els demo`: a reference orchestrator, file service and consumer at work."""

"""What people read and change in Postgres: for the pages and the commands, a function a statement.

The statements of the service itself stand in `core/db/`.
"""

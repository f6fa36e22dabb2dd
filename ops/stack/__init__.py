"""The service on one machine: embedded servers and the processes of the Procfile."""

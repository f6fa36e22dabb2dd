"""The command line, `els`."""

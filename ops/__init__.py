"""For people: the command line, the embedded servers, the ops page."""

"""The reference of messages: schemas, examples and pages, made from the catalogue."""

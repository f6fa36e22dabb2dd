-- Writes the refusal of a message that names no registered batch; its number is its dead letter's.
INSERT INTO event_outbox (id, type, generation, sequence, correlation_id, traceparent, data)
VALUES (%(id)s, %(type)s, %(generation)s, least(%(letter)s, 2147483647), %(correlation_id)s,
        %(traceparent)s, %(data)s)

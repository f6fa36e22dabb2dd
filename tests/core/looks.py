"""What the stores show: rows and invariants, as an operator would look at them."""

import hashlib

from ops.queries.invariants import check_batches, check_slots

TABLES = {
    "batch_essay_trackers": "batch_id",
    "essay_states": "essay_id",
    "batch_pending_content": "id",
    "excess_content": "id",
    "idempotency_keys": "created_at, key",
    "event_outbox": "sequence",
}
AT_REST_ONLY = {"A full batch is announced", "Every event was delivered"}


def rows(conn, table, batch_id):
    query = f"SELECT * FROM {table} WHERE batch_id = %s ORDER BY {TABLES[table]}"
    return conn.execute(query, [batch_id]).fetchall()


def everything(conn, batch_id):
    """All that Postgres has of a batch, to see that nothing changed."""
    return {table: rows(conn, table, batch_id) for table in TABLES}


def count_rows(conn, batch_id):
    return {table: len(found) for table, found in everything(conn, batch_id).items()}


def batch(conn, batch_id):
    found = rows(conn, "batch_essay_trackers", batch_id)
    return found[0] if found else None


def essays(conn, batch_id):
    return {row["essay_id"]: row for row in rows(conn, "essay_states", batch_id)}


def placed(conn, batch_id):
    """Content to slot."""
    return {
        row["text_storage_id"]: essay_id
        for essay_id, row in essays(conn, batch_id).items()
        if row["text_storage_id"]
    }


def held(conn, batch_id):
    """The contents and their slots, as the events list them."""
    return [
        {"essay_id": essay_id, "text_storage_id": text}
        for text, essay_id in placed(conn, batch_id).items()
    ]


def open_slots(conn, batch_id):
    return {
        essay_id
        for essay_id, row in essays(conn, batch_id).items()
        if row["current_status"] == "awaiting_content"
    }


def excess(conn, batch_id):
    """The contents without a slot, in the order in which they were recorded."""
    return [row["text_storage_id"] for row in rows(conn, "excess_content", batch_id)]


def waiting(conn, batch_id):
    return rows(conn, "batch_pending_content", batch_id)


def events(conn, batch_id, event_type=None):
    found = rows(conn, "event_outbox", batch_id)
    return [row for row in found if event_type in (None, row["type"])]


def types(conn, batch_id):
    return [row["type"] for row in events(conn, batch_id)]


def manifest(essays):
    """Compute a manifest as a consumer would, by the documented rule alone."""
    lines = sorted(f"{e['essay_id']} {e['text_storage_id']}\n".encode() for e in essays)
    return hashlib.sha256(b"".join(lines)).hexdigest()


def broken(conn, batch_id, *, at_rest=False, slots=None):
    """The titles of the invariants that this batch breaks; `at_rest` takes all of them."""
    checked = check_batches(conn, [batch_id])
    if slots is not None:
        checked.append(check_slots(conn, slots, [batch_id]))
    return [i.title for i in checked if not i.holds and (at_rest or i.title not in AT_REST_ONLY)]

"""What a migration may do while the workers of two releases run (CONTRIBUTING.md, "migration").

To expand is to add what older code does not notice, without keeping its writers waiting. To
contract is to delete what only older code uses; such a migration names, as `oldest`, the oldest
code that works after it.
"""

import re
from collections.abc import Iterator

FLAGS = re.IGNORECASE | re.DOTALL
NAME = r'"?(?:\w+"?\."?)?(\w+)"?'
NEW_TABLE = re.compile(rf"CREATE TABLE (?:IF NOT EXISTS )?{NAME}", FLAGS)
ON_TABLE = re.compile(
    rf"(?:ALTER TABLE|INDEX .*? ON|UPDATE|DELETE FROM|DROP TABLE) (?:IF EXISTS |ONLY )*{NAME}",
    FLAGS,
)
OF_ALEMBIC = re.compile(r"alembic_version", FLAGS)
VOLATILE = (
    r"(?:random|gen_random_uuid|uuid_generate_\w+|uuidv\d|clock_timestamp|nextval|timeofday)\("
)

OF_TABLE = r"(?:CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE)\b"  # what may follow ADD
COLUMN = rf"\bADD (?:COLUMN )?(?:IF NOT EXISTS )?(?!{OF_TABLE})"

# Never: they lock out readers too, or for as long as the table is large.
NEVER = {
    r"^(?:TRUNCATE|CLUSTER|VACUUM|LOCK TABLE|REINDEX)\b": "locks the whole table",
    r"\bALTER (?:COLUMN )?\S+ (?:SET DATA )?TYPE\b": "rewrites the table; add a column instead",
    r"^ALTER TABLE .*\bSET (?:UN)?LOGGED\b": "rewrites the table",
    r"^ALTER TABLE .* RENAME\b|^ALTER INDEX .* RENAME\b": "older code uses the old name",
    r"^CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY)": (
        "keeps writers waiting; use migrations.online.create_index"
    ),
    rf"{COLUMN}.*\bDEFAULT [^,]*{VOLATILE}": "rewrites the table; add it without",
    rf"{COLUMN}.*\bGENERATED\b": "rewrites the table",
    rf"{COLUMN}.*\b(?:UNIQUE|PRIMARY KEY|CHECK|REFERENCES)\b": (
        "keeps writers waiting; add the column, then the constraint"
    ),
    rf"{COLUMN}(?!.*\bDEFAULT\b).*\bNOT NULL\b": "older code writes no value for it",
    r"\bADD (?:CONSTRAINT \S+ )?(?:CHECK|FOREIGN KEY)(?!.*\bNOT VALID\b)": (
        "reads the whole table under a lock; add it NOT VALID, and validate it in the next one"
    ),
    r"\bADD (?:CONSTRAINT \S+ )?(?:UNIQUE|PRIMARY KEY|EXCLUDE)(?!.*\bUSING INDEX\b)": (
        "keeps writers waiting; build the index concurrently, and add it USING INDEX"
    ),
    r"^(?:UPDATE|DELETE)\b": "holds every row that it touches; change rows in batches",
}
# Only where the oldest code that is about uses it no more.
CONTRACTS = {
    r"^DROP (?:TABLE|INDEX|VIEW|TYPE|SEQUENCE|FUNCTION)\b": "older code may use it",
    r"^ALTER TABLE .*\bDROP (?!NOT NULL|DEFAULT|IDENTITY|EXPRESSION)": "older code may use it",
    r"\bALTER (?:COLUMN )?\S+ (?:SET NOT NULL|DROP DEFAULT)\b": "older code may not fill it",
}


def violations(sql: str, *, contract: bool = False) -> list[str]:
    """List what the SQL of one migration must not do, each with the reason."""
    statements = [*_statements(sql)]
    new = {name.lower() for each in statements for name in NEW_TABLE.findall(each)}
    old = [each for each in statements if not _concerns(each, new)]
    rules = NEVER if contract else NEVER | CONTRACTS
    found = [
        f"{reason}: {each}"
        for each in old
        for pattern, reason in rules.items()
        if re.search(pattern, each, FLAGS) and not _replaced(each, old)
    ]
    alone = [each for each in statements if re.search(r"\bCONCURRENTLY\b", each, FLAGS)]
    if alone and len(statements) > len(alone):
        found.append(f"needs a migration of its own, so that a retry is safe: {alone[0]}")
    return found


def _statements(sql: str) -> Iterator[str]:
    """Cut SQL into statements, without comments, transactions, and Alembic's own."""
    for part in re.sub(r"--[^\n]*|/\*.*?\*/", " ", sql, flags=re.DOTALL).split(";"):
        statement = " ".join(part.split())
        if statement and statement not in {"BEGIN", "COMMIT"} and not OF_ALEMBIC.search(statement):
            yield statement


def _concerns(statement: str, tables: set[str]) -> bool:
    found = ON_TABLE.search(statement)
    return bool(found and found[1].lower() in tables)


def _replaced(statement: str, others: list[str]) -> bool:
    """Tell whether a constraint is dropped to be added again, so that it may allow more."""
    dropped = re.search(r"\bDROP CONSTRAINT (?:IF EXISTS )?(\S+)", statement, FLAGS)
    return bool(dropped) and any(
        re.search(rf"\bADD CONSTRAINT {re.escape(dropped[1])} CHECK.*NOT VALID", each, FLAGS)
        for each in others
        if dropped
    )

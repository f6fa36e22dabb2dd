"""The words that we gave up, because nobody guessed what they mean, do not come back.

docs/glossary.md has the words that we use. Listed here are words of our own for which the field has
a better one, and phrases that made readers stop.
"""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GIVEN_UP = {  # a pattern -> the word instead
    r"strays?": "consumer, or undeliverable",
    r"intake": "upstream",
    r"carr(?:y|ied)_out": "execute",
    r"(?:take|place|run|assign)_together": "batching, assign",
    r"desk": "queries",
    r"ledger": "db",
    r"whereabouts": "location",
    r"follow_up": "after_commit",
    r"unless_overtaken": "retry_on_conflict",
    r"mender": "context",
    r"oncall": "operations",
    r"heed(?:s|ed)?": "read, notice",
    r"junk": "malformed",
    r"survey": "snapshot",
    r"pulse": "heartbeat",
    r"(?<!seal_)books": "accounts, or connection",
    r"told": "a noun of what it holds; `tell` with a subject in prose",
    r"anew": "again",
    r"in vain": "say what did not happen",
    r"but for": "except",
    r"as it is": "unchanged",
    r"goes? on with": "continues",
}
ENDINGS = {".py", ".sql", ".lua", ".md", ".html", ".toml", ".yml", ".yaml", ""}


def pages():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    ours = [name for name in listed if Path(name).suffix in ENDINGS and "/static/" not in name]
    return [name for name in ours if not name.startswith(("tests/", "CHANGELOG"))]


@pytest.mark.parametrize("pattern", GIVEN_UP)
def test_a_word_that_was_given_up_stays_so(pattern):
    word = re.compile(rf"(?<![a-zA-Z]){pattern}(?![a-zA-Z])", re.IGNORECASE)
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name in pages()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if word.search(line)
    ]

    assert found == [], f"say instead: {GIVEN_UP[pattern]}"

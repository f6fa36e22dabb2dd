"""Every block of code on every page runs beside a running service, or is checked otherwise.

A block that no rule covers fails. `elsewhere.py` lists the blocks that cannot run here, each with
what holds it instead; `reader.py` runs the others, and `checks.py` reads all of them.
"""

import json
import re
import shutil

import pytest

from ops.reference.examples import EVENT_EXAMPLES
from tests.docs import pages
from tests.docs.checks import check, is_settings
from tests.docs.elsewhere import ELSEWHERE, elsewhere
from tests.docs.reader import Reader, missing

BLOCKS = [block for page in pages.names() for block in pages.blocks(page)]
RUNS = {"sh", "console", "python", "js", "javascript", "sql", "text"}
NEEDS = {"jq", "node", "redis-cli"}  # programs that a page may use; without one it is skipped

TO_RUN = [b for b in BLOCKS if b.language in RUNS and not elsewhere(b) and not is_settings(b)]
TO_FOLLOW = sorted({block.page for block in TO_RUN})


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_is_covered_by_a_rule(block):
    check(block)


@pytest.mark.parametrize("page", TO_FOLLOW)
def test_a_page_works_for_a_person_who_follows_it(page, service, tmp_path):
    to_run = [block for block in TO_RUN if block.page == page]
    words = {word for block in to_run if block.language == "sh" for word in block.text.split()}
    if absent := [name for name in words & NEEDS if not shutil.which(name)]:
        pytest.skip(f"{page} needs {', '.join(absent)}")
    (tmp_path / "event.json").write_text(json.dumps(EVENT_EXAMPLES["BatchEssaysReady"]))

    with Reader(tmp_path, service) as reader:
        reader.follow(to_run)


def test_no_block_installs_into_the_environment_of_the_tests():
    assert [str(block) for block in TO_RUN if re.search(r"\b(pip|npm|uv)\b", block.text)] == []


def test_every_block_with_a_name_is_on_a_page_that_the_test_of_the_wire_reads():
    assert {block.page for block in BLOCKS if block.name} <= {"docs/events.md", "docs/tasks.md"}


def test_every_block_that_runs_elsewhere_is_there_and_names_a_file_that_is():
    for (page, beginning), reason in ELSEWHERE.items():
        assert [b for b in BLOCKS if b.page == page and b.text.startswith(beginning)], beginning
        for path in re.findall(r"tests/\S+\.py", reason):
            assert (pages.ROOT / path).exists(), path


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("", "a block without a language\n"),
        ("cobol", "STOP RUN.\n"),
        ("sh", "els no-such-command\n"),
        ("sh", "els status --no-such-option\n"),
        ("sh", "make no-such-target\n"),
        ("sh", "if true\n"),
        ("sh", "ELS_NO_SUCH_SETTING=1\n"),
        ("sh", "ELS_CONCURRENCY=many\n"),
        ("python", "def f(:\n"),
        ("json", '{"a": }\n'),
        ("json", '{\n"event_id": "x", "batch_id": "y", "reason": "z"}\n'),
        ("yaml", "a: [\n"),
        ("toml", "a = \n"),
        ("mermaid", "drawing\n"),
    ],
)
def test_a_wrong_block_is_noticed(language, text):
    with pytest.raises((Exception, pytest.fail.Exception)):
        check(pages.Block("docs/tasks.md", 1, language, text))


@pytest.mark.parametrize(
    ("shown", "printed", "lacks"),
    [
        ("a\n", "b\na\n", []),
        ("a\nb\n", "b\na\n", ["b"]),
        ("a\n…\nc\n", "a\nb\nc\n", []),
        ("ready in 3 s\n", "ready in 0.1 s\n", []),
        ("ready … batch-1\n", "ready at 8, batch-1\n", []),
        ("c\n", "a\n", ["c"]),
    ],
)
def test_an_output_is_compared_line_by_line_in_order(shown, printed, lacks):
    assert missing(shown, printed) == lacks

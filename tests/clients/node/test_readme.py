"""The code of the kit's README and how-to is that of the examples, which run in tests."""

import re

import pytest

from tests.clients.node.programs import KIT, ROOT

README = (KIT / "README.md").read_text()
HOW_TO = (ROOT / "docs/how-to/send-and-receive-with-node.md").read_text()
EXAMPLE = re.compile(r"<!-- (\S+) -->\n```javascript\n(.*?)```", re.DOTALL)
BLOCKS = EXAMPLE.findall(README) + EXAMPLE.findall(HOW_TO)


def test_every_block_of_code_is_an_example():
    assert README.count("```") / 2 == 2
    assert HOW_TO.count("```javascript") == 2
    assert len(BLOCKS) == 4


@pytest.mark.parametrize(("example", "shown"), BLOCKS, ids=[example for example, _ in BLOCKS])
def test_a_block_is_its_example(example, shown):
    assert shown == (ROOT / example).read_text()


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)

    assert links
    assert [link for link in links if not (KIT / link).exists()] == []

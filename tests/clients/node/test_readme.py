"""The code of the kit's README is that of the examples, which run in tests."""

import re

import pytest

from tests.clients.node.programs import KIT, ROOT

README = (KIT / "README.md").read_text()
BLOCKS = dict(re.findall(r"<!-- (\S+) -->\n```javascript\n(.*?)```", README, re.DOTALL))


def test_every_block_of_code_is_an_example():
    assert len(BLOCKS) == README.count("```") / 2 == 2


@pytest.mark.parametrize("example", BLOCKS)
def test_a_block_is_its_example(example):
    assert BLOCKS[example] == (ROOT / example).read_text()


def test_every_link_leads_somewhere():
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", README)

    assert links
    assert [link for link in links if not (KIT / link).exists()] == []

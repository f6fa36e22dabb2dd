"""Pages install the packages of this repository from files: none of them is in a registry."""

import json
import re
import tomllib
from fnmatch import fnmatch

import pytest

from tests.docs import pages

NODE = json.loads((pages.ROOT / "clients/node/package.json").read_text())
PYTHON = [
    tomllib.loads((pages.ROOT / folder / "pyproject.toml").read_text())["project"]["name"]
    for folder in (".", "clients/python", "durable_redis")
]
PACKED = f"els-client-{NODE['version']}.tgz"
INSTALLS = re.compile(r"\b(?:npm|pip) install ([^\n`]*)")


@pytest.mark.parametrize("page", pages.names())
def test_no_page_installs_a_package_of_ours_by_its_name(page):
    text = (pages.ROOT / page).read_text()

    words = [word for what in INSTALLS.findall(text) for word in re.split("[][ '\"=]+", what)]
    assert {NODE["name"], *PYTHON} & {*words} == set()


@pytest.mark.parametrize("page", pages.names())
def test_a_package_for_node_is_named_as_npm_packs_it(page):
    named = re.findall(r"els-client-[^\s`]*\.tgz", (pages.ROOT / page).read_text())

    assert [each for each in named if not fnmatch(PACKED, each)] == []

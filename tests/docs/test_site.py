"""The site that `make docs` builds: complete, searchable, without anything from elsewhere."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs import pages

BUILDER = pages.ROOT / ".venv-docs/bin/sphinx-build"
CONF = pages.ROOT / "docs/conf.py"
LOADED = re.compile(
    r'<(?:script|img|link rel="(?:stylesheet|icon|preload)")[^>]*\b(?:src|href)="([^"]+)"'
)
SENDS_FOR = re.compile(r"@import|url\(['\"]?(?:https?:)?//|fetch\(['\"]https?:")

pytestmark = pytest.mark.skipif(not BUILDER.exists(), reason="`make docs` made no tools here")


def build(source, out):
    command = [BUILDER, "-q", "-W", "--keep-going", "-b", "html", "-c", CONF.parent, source, out]
    return subprocess.run(
        [*map(str, command), "-d", f"{out}.pages"],
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("docs") / "site"
    built = build(pages.ROOT, out)
    assert built.returncode == 0, built.stderr
    return out


def test_every_page_is_built_and_can_be_found(site):
    built = {name.replace(".md", ".html") for name in pages.names()}
    index = (site / "searchindex.js").read_text()

    assert [name for name in built if not (site / name).exists()] == []
    assert [name for name in pages.names() if f'"{name.removesuffix(".md")}"' not in index] == []


def test_it_opens_at_the_map(site):
    assert "url=docs/index.html" in (site / "index.html").read_text()


def test_a_page_loads_nothing_from_elsewhere(site):
    loaded = {
        (page, target)
        for page in site.rglob("*.html")
        for target in LOADED.findall(page.read_text())
    }
    styles = [*site.rglob("*.css"), *(site / "_static/scripts").glob("*.js")]

    assert loaded
    for page, target in loaded:
        address = urlsplit(target)
        assert not address.netloc, f"{page}: {target}"
        if not address.scheme:
            assert (page.parent / unquote(address.path)).exists(), f"{page}: {target}"
    assert [path for path in styles if SENDS_FOR.search(path.read_text())] == []


def test_every_diagram_is_drawn(site):
    drawn = {
        name: len(blocks)
        for name in pages.names()
        if (blocks := [each for each in pages.blocks(name) if each.language == "mermaid"])
    }

    assert drawn
    for name, count in drawn.items():
        html = (site / name.replace(".md", ".html")).read_text()
        assert html.count('aria-roledescription="') == count
        assert not re.search("language-mermaid|highlight-mermaid", html)


WRONG = {
    "a link to no page": ("[x](nothing.md)\n", "nothing.md"),
    "a link to no heading": ("[x](other.md#nothing)\n", "nothing"),
    "an image that is not there": ("![x](nothing.png)\n", "nothing.png"),
    "a diagram that is none": ("```mermaid\nflowchart LR; a -->\n```\n", "Mermaid"),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_page_fails_the_build(tmp_path, text, said):
    made = a_source(tmp_path / "source", text)

    built = build(made, tmp_path / "site")

    assert built.returncode == 1
    assert said in built.stderr


def test_a_page_that_the_map_lacks_fails_the_build(tmp_path):
    made = a_source(tmp_path / "source", "well\n")
    (made / "docs/lost.md").write_text("# Lost\n")

    built = build(made, tmp_path / "site")

    assert built.returncode == 1
    assert "lost" in built.stderr


def a_source(root: Path, text: str) -> Path:
    """Make a repository of a map and one other page with this text."""
    (root / "docs/images").mkdir(parents=True)
    (root / "docs/index.md").write_text("# Map\n\n## All\n\n- [Other](other.md)\n")
    (root / "docs/other.md").write_text(f"# Other\n\n{text}")
    return root

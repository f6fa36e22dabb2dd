"""The pages of this repository, read as Markdown: their headings, links and code blocks."""

import re
import subprocess
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
MARKDOWN = MarkdownIt("commonmark").enable("table")
SHOWN = {"text", "code_inline"}  # the parts of a heading that a reader sees
IN_HTML = re.compile(r"""\b(?:href|src|srcset)="([^"]+)\"""")


@dataclass(frozen=True)
class Block:
    """A fenced block of code."""

    page: str
    line: int
    language: str
    text: str
    name: str = ""  # the second word behind the fence

    def __str__(self):
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Link:
    page: str
    target: str

    def __str__(self):
        return f"{self.page} -> {self.target}"


@cache
def names() -> tuple[str, ...]:
    """List every page, also those that nobody has committed yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return tuple(name for name in sorted(set(listed.split())) if (ROOT / name).exists())


@cache
def _tokens(page):
    return MARKDOWN.parse((ROOT / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    """List the fenced blocks of a page. One without a language has the language ""."""
    return [
        Block(page, token.map[0] + 1, language, token.content, name)
        for token in _tokens(page)
        if token.type == "fence"
        for language, _, name in [token.info.strip().partition(" ")]
    ]


def links(page: str) -> list[Link]:
    """List where a page leads to or takes an image from, also by HTML."""
    found = []
    for token in _tokens(page):
        inside = [token, *(token.children or ())]
        for each in inside:
            found += [each.attrs[name] for name in ("href", "src") if name in each.attrs]
            if each.type in {"html_block", "html_inline"}:
                found += IN_HTML.findall(each.content)
    return [Link(page, target) for target in dict.fromkeys(found)]


@cache
def anchors(page: str) -> frozenset[str]:
    """List the anchors of a page's headings, as a forge makes them."""
    made: dict[str, int] = {}
    found = set()
    tokens = _tokens(page)
    for opening, inline in pairwise(tokens):
        if opening.type == "heading_open":
            shown = "".join(each.content for each in inline.children if each.type in SHOWN)
            slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
            again = made[slug] = made.get(slug, -1) + 1
            found.add(f"{slug}-{again}" if again else slug)
    return frozenset(found)

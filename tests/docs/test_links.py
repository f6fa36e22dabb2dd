"""Every link of every page leads somewhere: to a file, a folder, a heading."""

from urllib.parse import unquote, urlsplit

import pytest

from tests.docs import pages

LINKS = [link for page in pages.names() for link in pages.links(page)]


def fault(link):
    """Say what is wrong with a link; None if nothing is, or if it leaves the repository."""
    address = urlsplit(link.target)
    if address.scheme or address.netloc:
        return None if address.scheme in {"http", "https"} else "it is no address of the web"
    path = (pages.ROOT / link.page).parent / unquote(address.path) if address.path else None
    target = path.resolve() if path else pages.ROOT / link.page
    if not target.is_relative_to(pages.ROOT):
        return "it leaves the repository"
    if not target.exists():
        return "there is no such file"
    name = str(target.relative_to(pages.ROOT))
    if address.fragment and address.fragment not in pages.anchors(name):
        return f"{name} has no such heading"
    return None


def test_the_pages_have_links():
    assert len(LINKS) > 100


@pytest.mark.parametrize("page", pages.names())
def test_every_link_of_a_page_leads_somewhere(page):
    wrong = {link.target: fault(link) for link in pages.links(page)}

    assert {target: why for target, why in wrong.items() if why} == {}


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("nothing.md", "there is no such file"),
        ("tasks.md#nothing", "docs/tasks.md has no such heading"),
        ("#nothing", "docs/events.md has no such heading"),
        ("../../elsewhere.md", "it leaves the repository"),
        ("file:///etc/passwd", "it is no address of the web"),
        ("tasks.md#what-a-sender-may-ask-for-and-limits", None),
        ("adr/", None),
        ("https://example.com/x#y", None),
    ],
)
def test_a_link_to_nothing_is_noticed(target, why):
    assert fault(pages.Link("docs/events.md", target)) == why

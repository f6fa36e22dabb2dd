"""How Sphinx makes a site of the pages of this repository: `make docs`.

The pages are plain Markdown, as a forge shows them. This file adds what Sphinx needs beside: the
order of the pages, which is that of the map, files that HTML in a page names, and the diagrams.
"""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import mermaidx
from docutils.nodes import document, literal_block, raw
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util import logging

project = "Essay Lifecycle Service"
html_title = project
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["**.md"]
exclude_patterns = [".*", "**/node_modules", "site"]
myst_heading_anchors = 4
html_theme = "furo"
html_copy_source = False

IMAGES = "docs/images"  # HTML in the README names some
START = '<meta http-equiv="refresh" content="0; url=docs/index.html">\n'
FRAME = '<div style="overflow-x: auto; background: white; padding: 1rem">{}</div>'
SMALLEST = 0.6  # of its size: a wider diagram is scrolled, so that one can read it
DRAWING = {  # options of Mermaid; its HTML labels are cut where the reader has another font
    "htmlLabels": False,
    "flowchart": {"wrappingWidth": 260},  # of states too, so that none of their names is broken
    "themeVariables": {"fontFamily": "DejaVu Sans, Verdana, sans-serif"},
}
log = logging.getLogger(__name__)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def pages_of(section: str, folder: Path, root: Path) -> Iterator[str]:
    """List the pages that a section of the map links to, in order; a folder means all of its."""
    for target in LINK.findall(section):
        path = (folder / target).resolve()
        if path.is_dir():
            yield from sorted(f"/{page.relative_to(root)}" for page in path.glob("*.md"))
        elif path.suffix == ".md":
            yield f"/{path.relative_to(root)}"


def add_contents(app: Sphinx, name: str, content: list[str]) -> None:
    """Make the contents of the site of the map: a part for each of its sections."""
    if name != root_doc:
        return
    root, listed = Path(app.srcdir), set()
    for section in re.split(r"^## ", content[0], flags=re.MULTILINE)[1:]:
        title = section.partition("\n")[0]
        pages = [page for page in pages_of(section, root / "docs", root) if page not in listed]
        listed.update(pages)
        lines = "\n".join(dict.fromkeys(pages))
        content[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{lines}\n```\n"


def allow_folders(app: Sphinx, tree: document) -> None:
    """Show the name of a folder without a link: a site has no lists of files."""
    page = Path(app.srcdir, app.env.docname)
    for link in list(tree.findall(pending_xref)):
        if (page.parent / link["reftarget"]).is_dir():
            link.replace_self(link.children)


def draw(app: Sphinx, tree: document) -> None:
    """Put a drawing in the place of each Mermaid block; warn of one that cannot be drawn."""
    blocks = [block for block in tree.findall(literal_block) if block["language"] == "mermaid"]
    for number, block in enumerate(blocks):
        try:
            drawing = mermaidx.render(block.astext(), config=DRAWING).svg()
        except RuntimeError as error:
            log.warning("%s", error, location=block)
        else:
            html = FRAME.format(fitted(drawing, f"diagram-{number}"))
            block.replace_self(raw("", html, format="html"))


def fitted(drawing: str, name: str) -> str:
    """Fit an SVG into its page, and let its styles concern no other one there."""
    limit = re.search(r"max-width: ([\d.]+)px;", drawing)
    assert limit, "Mermaid says how wide a diagram is"
    width = float(limit[1])
    style = f"max-width: 100%; min-width: {SMALLEST * width:.0f}px;"
    sized = drawing.replace('width="100%"', f'width="{width:.0f}"', 1)
    return sized.replace(limit[0], style, 1).replace("my-svg", name)


def complete(app: Sphinx, error: Exception | None) -> None:
    """Add the images, and a first page that leads to the map."""
    if error is None:
        out = Path(app.outdir)
        shutil.copytree(Path(app.srcdir) / IMAGES, out / IMAGES, dirs_exist_ok=True)
        (out / "index.html").write_text(START)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", add_contents)
    app.connect("doctree-read", allow_folders)
    app.connect("doctree-read", draw)
    app.connect("build-finished", complete)

"""CONTRIBUTING.md names only what exists: files, code, make targets, commands, settings, tables."""

import ast
import builtins
import keyword
import re
import tomllib
from pathlib import Path

import pytest
import typer.main

from core.settings import PREFIX, Settings
from migrations.schema import metadata
from ops.cli.main import app
from ops.explain.causes import CAUSES

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "tasks", "durable_redis", "ops", "migrations", "examples", "bench")
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
BLOCKS = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))
INLINE = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL))
NAMED = sorted({*INLINE, *re.findall(r"^make [\w-]+|\btests/\S+", BLOCKS, re.MULTILINE)})
MAKEFILE = (ROOT / "Makefile").read_text()
WEB = "".join(path.read_text() for path in (ROOT / "ops/web").glob("*.py"))
PYTEST = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
ROUTES = re.findall(r'"(/[\w/]+)"', WEB)

# The worked examples add these: they do not exist.
EXAMPLES = {
    "els.amend_batch",
    "BatchAmended",
    "Lifecycle.amend_batch",
    "batches.amend",
    "course_missing",
    "els_amendments_total",
    "ELS_AMEND_LIMIT",
    "amend_limit",
    "amended_at",
    "migrations/versions/NNNN_amended_at.py",
}
OF_OTHERS = {"NOT", "VALID"}  # of Postgres
COLUMNS_OF_RULES = {"since", "detail"}


def code_names():
    """List our modules and what they define, import, take or pass, each with its full path."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield module
            yield from defined(ast.parse(path.read_text()), module)


def defined(parent, inside):
    for node in ast.iter_child_nodes(parent):
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield f"{inside}.{name}"
                yield from defined(node, f"{inside}.{name}")
                continue
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name) | ast.alias(name=name):
                yield f"{inside}.{name}"
            case ast.keyword(arg=str(name)):
                yield f"{inside}.{name}"
        yield from defined(node, inside)


def ends(dotted):
    """List what a name may be called: b.c and c, for a.b.c."""
    parts = dotted.split(".")
    return {".".join(parts[start:]) for start in range(len(parts))}


@pytest.fixture(scope="module")
def words():
    """Every word that a name on the page may hold."""
    schema = {table.name for table in metadata.sorted_tables}
    schema |= {column.name for table in metadata.sorted_tables for column in table.columns}
    deployed = "".join(path.read_text() for path in (ROOT / "deploy").rglob("*.yml"))
    return {
        *(end for name in code_names() for end in ends(name)),
        *(PREFIX + name.upper() for name in Settings.model_fields),
        *re.findall(r"\b(?:Els|els_)\w+", deployed),
        *re.findall(r"\$\((\w+)\)", MAKEFILE),
        *PACKAGES,
        *(marker.split(":")[0] for marker in PYTEST["markers"]),
        *schema,
        *CAUSES,
        *COLUMNS_OF_RULES,
        *EXAMPLES,
        *OF_OTHERS,
        *dir(builtins),
        *keyword.kwlist,
    }


def exists(name, words):
    """Tell whether everything that a name holds exists."""
    match name.split():
        case ["make", target, *_]:
            return re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)
        case ["els", command, *_]:
            return command in typer.main.get_command(app).commands
        case ["sh", path] | [path] if "/" in path or path.endswith((".md", ".yml")):
            return path in EXAMPLES or path in ROUTES or (ROOT / path).exists()
    text = re.sub(r"^(--|###) (rule:)?", "", name)
    return words >= set(re.findall(r"[A-Za-z_][\w.]*", text))


@pytest.mark.parametrize("name", NAMED)
def test_what_contributing_names_exists(name, words):
    assert exists(name, words)


@pytest.mark.parametrize(
    "name",
    [
        "core/nothing.py",
        "NOTHING.md",
        "make nothing",
        "els nothing",
        "/nothing",
        "ELS_NOTHING",
        "Lifecycle.nothing",
        "batches.nothing",
        "class BatchForgotten(Event)",
        "els_nothing_total{outcome}",
        "nothing=True",
    ],
)
def test_a_name_of_nothing_is_noticed(name, words):
    assert not exists(name, words)

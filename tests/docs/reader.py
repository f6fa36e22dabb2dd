"""A person who follows a page: runs its commands, saves its files, and compares what it shows."""

import ast
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from contextlib import ExitStack, chdir
from pathlib import Path

import psycopg
from celery import Celery
from psycopg.rows import tuple_row

from ops.stack.leash import leashed
from tests import factories as make
from tests.docs.pages import ROOT
from tests.live.conftest import until

SERVES = re.compile(r"^(?:celery -A \w+ worker|node \w+\.mjs serve)\b")  # in a terminal of its own
STACK = re.compile(r"^(?:ELS_\w+='[^']*' )?(?:\.venv/bin/)?els run$", re.MULTILINE)
LOOKS = re.compile(r"\bels (?:find|status|explain|dead-letters (?:list|show)|outbox list)\b")
SAVED = re.compile(r"^(?:#|//) ([\w.-]+\.(?:py|mjs))\n")  # the first line names the file
VARIES = [  # a pattern -> what stands for it where an output is compared
    (r"\x1b\[[0-9;]*m", ""),
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{22}\b", "UUID"),
    (r"\b[0-9a-f]{32,64}\b", "HASH"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.\d]*(?:Z|[+]00:00| UTC)?", "TIME"),
    (r"\b127\.0\.0\.1:\d+", "ADDRESS"),
    (r"\b\d+(?:\.\d+)? ?(?:ms|s|min|h)\b", "DURATION"),
    (r"\s+", " "),
]


def same_for_all(text):
    for pattern, name in VARIES:
        text = re.sub(pattern, name, text)
    return text.strip()


def missing(shown: str, output: str) -> list[str]:
    """List the lines of a shown output that the real one lacks, in this order; `…` is anything."""
    lines = [same_for_all(line) for line in output.splitlines()]
    wanted = [same_for_all(line) for line in shown.splitlines() if line.strip(" …")]
    for each in wanted:
        pattern = re.compile(".*".join(map(re.escape, re.split(" ?… ?", each))))
        found = next((n for n, line in enumerate(lines) if pattern.fullmatch(line)), None)
        if found is None:
            return [each]
        del lines[: found + 1]
    return []


def commands(text: str) -> list[str]:
    """List the commands of a shell block, each on one line, without comments."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


class Reader:
    """Follows the blocks of one page in order, in one folder and one terminal with its variables.

    The folder looks like a checkout in which `els run` runs. Python blocks may take some names for
    granted: `app`, a stock Celery app on the broker, with results; `broker_url`, `redis_url`; and
    `event`, a content for a batch that has a free slot.
    """

    def __init__(self, folder: Path, service):
        self.folder, self.service = folder, service
        self.output = ""
        self.undo = ExitStack()
        self.serving = None
        for name in (".venv", "examples", "clients", "docs", "Makefile"):
            if (ROOT / name).exists():
                (folder / name).symlink_to(ROOT / name)
        if not (folder / ".venv").exists():
            (folder / ".venv").symlink_to(sys.prefix)
        (folder / ".els").symlink_to(service.home)
        self.state = folder / ".state"
        self.state.write_text("")
        self.names = {}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.undo.close()

    def follow(self, blocks):
        """Do what each block says. Raises AssertionError where that does not work."""
        for block, after in zip(blocks, [*blocks[1:], None], strict=True):
            shown = after.text if after and after.language == "text" else ""
            if block.language == "sh" and all(map(LOOKS.search, commands(block.text))):
                self.look(block, shown)
            else:
                self.do(block)

    def do(self, block):
        """Do what one block says."""
        match block.language:
            case "sh" if STACK.search(block.text):
                pass  # it runs: see conftest.py
            case "sh" if SERVES.match(block.text):
                self.serve(block)
            case "sh":
                self.run(block.text, block)
            case "console":
                self.try_each(block)
            case "python" | "js" | "javascript" if saved := SAVED.match(block.text):
                (self.folder / saved[1]).write_text(block.text)
            case "python":
                self.execute(block)
            case "sql":
                self.query(block)
            case "text":
                self.compare(block)

    def run(self, script, block):
        """Run commands in this page's terminal, which keeps its variables."""
        ran = subprocess.run(
            ["sh", "-euc", self._in_terminal(f"{script}\nexport -p > {self._state}")],
            cwd=self.folder,
            env=self.environ(),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        self.output = ran.stdout + ran.stderr
        assert ran.returncode == 0, f"{block}: {self.output}"

    def look(self, block, shown):
        """Run commands that only look, as a person does: again, until they show the expected."""

        def is_shown():
            try:
                self.run(block.text, block)
            except AssertionError:
                return False
            return not missing(shown, self.output)

        try:
            until(is_shown, 60, f"{block} shows what the page says")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.output}") from None

    @property
    def _state(self):
        return shlex.quote(str(self.state))

    def _in_terminal(self, script):
        return f". {self._state}\n{script}"

    def environ(self):
        kept = {k: v for k, v in os.environ.items() if not k.startswith("ELS_")}
        path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
        kit = {"PYTEST_PLUGINS": "els_client.pytest_plugin"}  # as where the kit is installed
        return {**kept, **kit, "PATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "100"}

    def serve(self, block):
        """Start what runs in a terminal of its own, until the page ends."""
        self.serving = self.folder / f"{block.line}.out"
        script = self._in_terminal(f"exec {block.text}")
        with self.serving.open("wb") as out:
            process = subprocess.Popen(
                leashed(["sh", "-euc", script], signal.SIGTERM),
                cwd=self.folder,
                env=self.environ(),
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.undo.callback(process.wait, 20)
        self.undo.callback(process.terminate)

    def try_each(self, block):
        """Run each command after a `$`, and compare what the page shows below it."""
        shown = re.split(r"^\$ ", block.text, flags=re.MULTILINE)
        assert not shown[0].strip(), f"{block}: a console begins with a command after `$`"
        for each in shown[1:]:
            command, _, output = each.partition("\n")
            self.run(command, block)
            assert missing(output, self.output) == [], f"{block}: it says {self.output}"

    def execute(self, block):
        """Run Python in one namespace a page; what it prints is its output."""
        if not self.names:
            self.names = self._names_for_granted()
        printed = []
        self.names["print"] = lambda *values: printed.append(" ".join(map(str, values)))
        *first, last = ast.parse(block.text).body
        if not isinstance(last, ast.Expr):
            first, last = [*first, last], None
        with chdir(self.folder):
            exec(compile(ast.Module(first, []), str(block), "exec"), self.names)
            if last:
                value = eval(compile(ast.Expression(last.value), str(block), "eval"), self.names)
                self.compare_value(block, value)
        self.output = "\n".join(printed)

    def compare_value(self, block, value):
        """Compare the last value of Python with what a comment behind it claims: a JSON object."""
        if claimed := re.search(r"  # (\{.*\})$", block.text.rstrip()):
            shown, real = claimed[1], json.dumps(value, ensure_ascii=False)
            assert missing(shown, real) == [], f"{block}: it is {real}"

    def _names_for_granted(self):
        env = self.service.env
        app = Celery("page", broker=env["broker_url"], backend=env["redis_url"])
        self.undo.callback(app.close)
        batch = make.new_batch()
        kwargs = {"event": make.registration(batch, 2)}
        sent = app.send_task("els.register_batch", kwargs=kwargs, queue="els", ignore_result=False)
        sent.get(timeout=30)
        return {
            "app": app,
            "broker_url": env["broker_url"],
            "redis_url": env["redis_url"],
            "event": make.content(batch),
            "__name__": "page",
        }

    def query(self, block):
        """Run SQL in a transaction that writes nothing."""
        with psycopg.connect(self.service.env["database_url"], row_factory=tuple_row) as conn:
            conn.read_only = True
            cursor = conn.execute(block.text)
            rows = cursor.fetchall() if cursor.description else []
        self.output = "\n".join(" | ".join(map(str, row)) for row in rows)

    def compare(self, block):
        """Compare an output with what came before; wait for it where something serves."""
        lacks = missing(block.text, self.output)
        if self.serving is None or not lacks:
            assert lacks == [], f"{block}: it says {self.output}"
            return
        out, self.serving = self.serving, None

        def appears():
            return not missing(block.text, out.read_text())

        try:
            until(appears, 60, f"{block} appears")
        except AssertionError as error:
            raise AssertionError(f"{error}: {out.read_text()}") from None

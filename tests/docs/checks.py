"""What can be said of a block of code without running it, by its language."""

import ast
import configparser
import json
import re
import shlex
import subprocess
import tomllib
from contextlib import suppress

import pytest
import typer.main
import yaml

from core.catalogue import TASKS
from core.parsing import parse
from core.settings import Settings
from ops.cli.main import app
from ops.reference.schemas import event_faults
from tests.docs import pages
from tests.docs.reader import commands

ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=.*", re.DOTALL)
DIAGRAMS = ("flowchart ", "stateDiagram-v2", "sequenceDiagram")
COMMANDS = typer.main.get_command(app).commands
MAKEFILE = (pages.ROOT / "Makefile").read_text()


def check(block):
    """Check a block without running it. Raises whatever its language has to say."""
    match block.language:
        case _ if is_settings(block):
            check_settings(block)
        case "sh" | "console":
            check_shell(block)
        case "python":
            ast.parse(block.text)
        case "json":
            check_json(block)
        case "yaml":
            list(yaml.safe_load_all(block.text))
        case "toml":
            tomllib.loads(block.text)
        case "ini":
            configparser.ConfigParser().read_string(block.text)
        case "mermaid":
            assert block.text.startswith(DIAGRAMS)
        case "js" | "javascript" | "sql" | "text":
            assert block.text.strip()
        case unknown:
            pytest.fail(f"no rule covers a block of language {unknown!r}")


def check_settings(block):
    """Check settings together; where a page shows another value of one, those from there on."""
    given: dict[str, str] = {}
    for assignment in shlex.split(block.text, comments=True):
        name, _, value = assignment.partition("=")
        if name in given:
            Settings.from_env(given)
            given = {}
        given[name] = "" if name.startswith("ELS_TLS_") else value  # files of another host
    Settings.from_env(given)


def check_shell(block):
    lines = commands(block.text)
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    script = block.text if block.language == "sh" else "\n".join(lines)
    subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    for line in lines:
        with suppress(ValueError):  # a part of a text between quotes
            check_command(shlex.split(line.partition(" | ")[0], comments=True))


def check_command(words):
    """Check that a command of ours exists, and has these options."""
    while words and ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    match words:
        case ["els" | ".venv/bin/els", name, *rest]:
            command = COMMANDS[name]
            while rest and rest[0] in getattr(command, "commands", {}):
                command, rest = command.commands[rest[0]], rest[1:]
            known = {option for parameter in command.params for option in parameter.opts}
            given = {
                word.partition("=")[0] for word in rest if word.startswith("-") and word != "-"
            }
            free = command.context_settings.get("ignore_unknown_options")
            assert free or given <= known | {"--help"}, f"els {name} has no {given - known}"
        case ["make", *targets]:
            for target in (each for each in targets if "=" not in each):
                assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE), target


def check_json(block):
    """Check an event or a message that a page shows as a whole, against what the service takes."""
    for line in (
        [block.text] if block.text.lstrip().startswith(("{\n", "[")) else block.text.splitlines()
    ):
        check_message(json.loads(line))


def check_message(shown):
    match shown:
        case {"specversion": _, "type": _}:
            assert event_faults(shown) == []
        case {"task": str(task), "event": dict(event)}:
            parse(TASKS[task].model, task, event, TASKS[task].limit)
        case {"event_id": _, "batch_id": _}:
            task = next(task for task in TASKS.values() if shown.keys() & {*task.known_by})
            parse(task.model, task.name, shown, task.limit)
        case [[], {"event": dict(event)}, dict()]:
            check_message(event)


def is_settings(block):
    """Tell whether a block only sets variables."""
    if block.language not in {"sh", "ini"}:
        return False
    try:
        words = shlex.split(block.text, comments=True)
    except ValueError:
        return False
    return all(map(ASSIGNMENT.fullmatch, words))

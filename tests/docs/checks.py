"""What can be said of a block of code without running it, by its language."""

import ast
import configparser
import json
import re
import shlex
import subprocess
import tomllib

import pytest
import typer.main
import yaml

from core.catalogue import TASKS
from core.messages import parse
from core.settings import PREFIX, Settings
from ops.cli.main import app
from ops.reference.schemas import event_faults
from tests.docs import pages
from tests.docs.reader import commands

ASSIGNMENT = re.compile(r"([A-Z][A-Z0-9_]*)=('[^']*'|\"[^\"]*\"|\S*)\s*(?:#.*)?")
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
        case "javascript" | "sql" | "text":
            assert block.text.strip()
        case unknown:
            pytest.fail(f"no rule covers a block of language {unknown!r}")


def check_settings(block):
    given = {name: shlex.split(value) for name, value in ASSIGNMENT.findall(block.text)}
    values = {name: value[0] if value else "" for name, value in given.items()}
    files = {name for name in values if name.startswith("ELS_TLS_")}  # of another host
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert {name for name in values if name.startswith(PREFIX)} <= known
    Settings.from_env({name: value for name, value in values.items() if name not in files})


def check_shell(block):
    lines = commands(block.text)
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    subprocess.run(["sh", "-n"], input="\n".join(lines), text=True, check=True)
    for line in lines:
        check_command(shlex.split(line, comments=True))


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
    lines = block.text.splitlines()
    return block.language in {"sh", "ini"} and all(map(ASSIGNMENT.fullmatch, lines))

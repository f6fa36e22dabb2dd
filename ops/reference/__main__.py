"""Write the reference into a folder: `python -m ops.reference docs/reference`."""

import json
import sys
from pathlib import Path

from core.catalogue import EVENTS, TASKS
from core.settings import Settings
from ops.output import say
from ops.reference.api import api_page
from ops.reference.asyncapi import asyncapi
from ops.reference.pages import events_page, tasks_page
from ops.reference.schemas import schema
from ops.web.api.openapi import openapi


def files() -> dict[str, str]:
    """Return the text of each file, by its path in the folder."""
    document = asyncapi(Settings())
    return {
        "tasks.md": tasks_page(),
        "events.md": events_page(),
        "api.md": api_page(),
        "asyncapi.json": _json(document),
        "openapi.json": _json(openapi()),
        **{f"schemas/{name}.json": _json(schema(name)) for name in (*TASKS, *EVENTS)},
    }


def main(folder: Path) -> None:
    """Write each file, and remove those of messages that are gone."""
    made = files()
    for stale in {*folder.rglob("*.json")} - {folder / name for name in made}:
        stale.unlink()
    for name, text in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    say(f"{len(made)} files in {folder}")


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

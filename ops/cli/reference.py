"""`els schema`: what a message has to look like, for people and programs."""

from typing import Annotated

import typer

from core.catalogue import EVENTS, TASKS
from ops.cli.completion import among
from ops.cli.options import AsJson
from ops.output import out, print_json


def schema(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[TASK or EVENT]",
            help="Such as els.assign_content",
            autocompletion=among([*TASKS, *EVENTS]),
        ),
    ] = None,
    asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="Print the AsyncAPI document of all messages")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print the JSON Schema of a task's event, or of an event as receivers get it.

    Without a name, list all. The schema has a whole example.
    """
    from core.settings import Settings
    from ops.reference import schemas
    from ops.reference.asyncapi import asyncapi as document

    if asyncapi:
        print_json(document(Settings.from_env()))
    elif name:
        print_json(schemas.schema(name))
    elif as_json:
        print_json({"tasks": [*TASKS], "events": [*EVENTS]})
    else:
        for title, names in (("Tasks", TASKS), ("Events", EVENTS)):
            out.print(
                f"{title}: what {'upstream services send' if names is TASKS else 'receivers get'}"
            )
            for each in names:
                out.print(f"  {each}")
        out.print("`els schema NAME` prints one.")

"""`els access`: the rights of each program on the broker, to be given by an administrator."""

from typing import Annotated, Literal

import typer

from ops.cli.options import AsJson, Home, read_settings
from ops.output import print_json, print_line


def access(
    server: Annotated[Literal["redis", "rabbitmq"], typer.Argument(help="The kind of server")],
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print the rules that let each program do what it must, and nothing else.

    For Redis 7 or Valkey: lines of an ACL file. For RabbitMQ: commands for an administrator. No
    user has a password, so none can log in before you give it one.
    """
    from ops import access as rights

    settings = read_settings(home)
    if as_json:
        print_json(rights.as_json(settings, server))
        return
    lines = rights.redis_lines if server == "redis" else rights.rabbitmq_lines
    for line in lines(settings):
        print_line(line)

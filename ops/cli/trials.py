"""The commands that try the service out: demo, torture, bench."""

from pathlib import Path
from typing import Annotated

import typer

from ops.cli.options import AsJson, Home, read_settings
from ops.output import fail, out, print_json, say


def demo(
    home: Home = None,
    folder: Annotated[
        Path | None, typer.Option(help="Upload the text files of this folder instead")
    ] = None,
    timeout_s: Annotated[float, typer.Option(min=1, help="Give up after so many seconds")] = 60,
    as_json: AsJson = False,
) -> None:
    """Run the service and send it real work; exit 0 only if every invariant held.

    A reference orchestrator and file service upload a guest batch of 25 essays and a regular
    batch, out of order, with repeats, an early content, a rejected file and an excess one.
    """
    from ops.demo.play import play
    from ops.demo.upload import read_folder

    files = read_folder(folder) if folder else None
    report = play(read_settings(home), files, timeout_s, say)
    if as_json:
        print_json(report.as_json())
    else:
        report.show(out)
    raise typer.Exit(0 if report.ok else 1)


def torture(
    minutes: Annotated[float, typer.Option(min=0.1, help="How long to inject faults")] = 2,
    batches: Annotated[int, typer.Option(min=1, help="Send at most this many batches")] = 100_000,
    seed: Annotated[int, typer.Option(help="The same seed makes the same choices")] = 1,
    only: Annotated[
        list[str] | None, typer.Option(help="Inject only this fault; may be repeated")
    ] = None,
    longest: Annotated[
        float | None, typer.Option(min=0.5, help="End every fault after this many seconds")
    ] = None,
    rate: Annotated[float, typer.Option(min=0.1, help="Messages a second of the load")] = 50,
    logs: Annotated[Path | None, typer.Option(help="Copy the logs into this folder")] = None,
    rabbitmq: Annotated[
        bool, typer.Option("--rabbitmq", help="Use RabbitMQ as the broker, not Valkey")
    ] = False,
    list_faults: Annotated[
        bool, typer.Option("--list", help="List the faults and inject none")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Inject random faults into a private stack under load, then check every promise.

    It kills workers at every crash point; restarts, freezes and fills servers or makes them
    read-only; cuts connections or drops their data; flushes Redis; replays old messages. Exit
    status 1 if an invariant is broken.
    """
    from ops.torture import all_faults, broker_kind, show
    from ops.torture import torture as run_torture

    if list_faults:
        faults = all_faults(broker_kind(rabbitmq))
        names = list(dict.fromkeys(fault.name for fault in faults))
        print_json(names) if as_json else out.print("\n".join(names), markup=False)
        return
    report = run_torture(
        seed,
        minutes,
        batches,
        say,
        only=tuple(only or ()),
        longest_s=longest,
        logs=logs,
        rabbitmq=rabbitmq,
        rate=rate,
    )
    if as_json:
        print_json(report.as_json())
    else:
        show(report, out)
    raise typer.Exit(0 if report.ok else 1)


def bench(context: typer.Context) -> None:
    """Measure throughput and latency (not installed: run it from a checkout of the source)."""
    message = "the benchmarks are not installed; run `els bench` from a checkout of the source"
    fail(message, "--json" in context.args)

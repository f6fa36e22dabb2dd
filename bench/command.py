"""`els bench`: the command; the rest of the package measures."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from core.servers.urls import is_amqp
from ops.cli.options import AsJson
from ops.output import err, out, print_json, say

BROKERS = ("redis://", "rediss://", "amqp://", "amqps://")


def bench(
    quick: Annotated[
        bool, typer.Option("--quick", help="Two short rounds, for a first impression")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Length of one measurement")] = 2,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements per case, in turns")] = 5,
    peers: Annotated[
        bool, typer.Option("--peers", help="Measure other libraries at the same job too")
    ] = False,
    growth: Annotated[
        bool,
        typer.Option("--growth", help="Measure large batches, many batches and full tables too"),
    ] = False,
    pool: Annotated[
        str, typer.Option(help="Pool of a worker: prefork, solo or threads")
    ] = "prefork",
    processes: Annotated[int, typer.Option(min=1, help="Processes or threads per worker")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="Workers")] = 1,
    prefetch: Annotated[
        int | None,
        typer.Option(min=1, help="Messages fetched ahead per process (default: as the service)"),
    ] = None,
    database_url: Annotated[
        str | None, typer.Option(help="Use this empty database, not an embedded Postgres")
    ] = None,
    redis_url: Annotated[
        str | None, typer.Option(help="Use this empty Redis, not an embedded Valkey")
    ] = None,
    broker_url: Annotated[
        str | None, typer.Option(help="Use this broker, such as amqp://…, not the Redis")
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Write JSON and charts into this folder")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the files written")] = "bench",
    as_json: AsJson = False,
) -> None:
    """Measure throughput and latency on this machine, beside Celery tasks that do nothing.

    It starts servers and workers of its own and leaves your running service alone. Each figure is
    the median of several rounds, in which all cases take turns; compare by the ratios.
    """
    from dataclasses import replace

    from bench.run import QUICK, Plan
    from bench.run import bench as run_bench
    from bench.testbed import Crew, Servers, open_testbed
    from tasks.app import PUSHED

    if pool not in ("prefork", "solo", "threads"):
        raise typer.BadParameter(
            f"{pool} is not one of prefork, solo, threads", param_hint="--pool"
        )
    if broker_url and not broker_url.startswith(BROKERS):
        raise typer.BadParameter(
            "must be the URL of a Redis or RabbitMQ", param_hint="--broker-url"
        )
    plan = QUICK if quick else replace(Plan(), seconds=seconds, rounds=rounds)
    ahead = prefetch or (PUSHED if is_amqp(broker_url or "") else 1)
    crew = Crew(pool, 1 if pool == "solo" else processes, workers, ahead)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        open_testbed(crew, Servers(database_url, redis_url, broker_url), say) as testbed,
        Progress(*columns, console=err, transient=True) as progress,
    ):
        bar = progress.add_task("starting")
        done = 0

        def tick(part: str) -> None:
            nonlocal done
            done += 1
            progress.update(bar, description=f"{part}: measurement {done}")

        report = run_bench(testbed, plan, peers=peers, growing=growth, tick=tick)
    if as_json:
        print_json(report.as_json())
    else:
        report.show(out)
    for file in report.write(out_dir, name) if out_dir else []:
        say(f"written: {file}")

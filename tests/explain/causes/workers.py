"""Workers that are gone, hang, or serve something else."""

from tests.explain.cause import cause


@cause("no_worker", says=["No worker is running"])
def none_was_ever_started(place):
    yield place.insert_batch()


@cause("waiting_for_contents", never=["No worker", "sweep has not run"])
def everything_runs(running):
    yield running.register()

"""Beat that is gone, hangs, or ticks for somebody else, and a sweep that somebody keeps."""

import psycopg

from core.signs.beats import keys
from core.signs.heartbeat import SWEPT
from core.signs.pauses import server_time
from ops.heartbeat import BEAT_GONE
from ops.signs import read_beats
from tests.explain.cause import cause
from tests.explain.place import WAIT_S
from tests.live.conftest import until

NO_BEAT = ["No beat is running"]


def until_the_sweep_is_missed(place):
    def missed():
        beats = read_beats(place.valkey, place.queue)
        return beats.leader is None and not beats.standing_by

    until(missed, BEAT_GONE.total_seconds() + WAIT_S, "no beat counts as alive")


@cause("beat_silent", says=NO_BEAT, never=["No worker"], step="els beat")
def none_was_ever_started(place):
    place.worker()
    yield place.insert_batch()


@cause("beat_silent", says=[*NO_BEAT, "the last sweep ran at"], step="els beat")
def it_was_killed(place):
    _, beat = place.run()
    place.end(beat)
    until_the_sweep_is_missed(place)
    yield place.insert_batch()


@cause("beat_silent", says=NO_BEAT, never=["No worker"])
def it_is_stopped_by_a_debugger(place):
    _, beat = place.run()
    with place.frozen(beat):
        until_the_sweep_is_missed(place)
        yield place.insert_batch()


@cause(
    "beat_silent",
    says=["The sweep has not run", "sends no ticks: its ELS_SWEEP_EVERY is too long"],
    never=["no worker executes its ticks", "No worker"],
    step="els reconcile",
)
def it_ticks_once_a_day(place):
    place.worker()
    place.start_beat(ELS_SWEEP_EVERY="86400")
    batch = place.insert_batch()
    until(lambda: place.valkey.exists(SWEPT), WAIT_S, "it has ticked once, at its start")
    place.valkey.set(SWEPT, server_time(place.valkey) - 300)
    yield batch


@cause("beat_silent", says=NO_BEAT)
def it_ticks_for_another_queue(place):
    place.worker()
    place.start_beat(ELS_QUEUE="other-school")
    yield place.insert_batch()


@cause(
    "beat_silent",
    says=["the lease of the beat that leads never ends"],
    never=["ELS_SWEEP_EVERY"],
    step="DEL els:beat:",
)
def another_program_has_written_its_lease(place):
    place.worker()
    batch = place.insert_batch()
    place.valkey.set(keys(place.queue)[0], "nobody")
    place.valkey.set(SWEPT, server_time(place.valkey) - 300)
    yield batch


@cause("worker_other_queue", says=[".control", "sweeps"], never=["No beat is running"])
def no_worker_takes_its_ticks(place):
    place.worker("-Q", f"{place.queue},{place.queue}.internal")
    place.start_beat()
    yield place.insert_batch()


@cause("beat_silent", step="kubectl rollout restart deployment/els-beat")
def it_is_gone_on_kubernetes(place):
    place.worker(KUBERNETES_SERVICE_HOST="10.0.0.1")
    yield place.insert_batch()


@cause("beat_silent", step="systemctl start els-beat")
def it_is_gone_under_systemd(place):
    place.worker(INVOCATION_ID="0" * 32)
    yield place.insert_batch()


@cause("sweep_lock_held", says=["idle", "pid "], step="pg_terminate_backend")
def somebody_has_taken_the_lock_of_the_sweep(place):
    with psycopg.connect(place.database_url, autocommit=True) as holding:
        holding.execute("SELECT pg_advisory_lock(hashtextextended('sweep', 0))")
        place.worker()
        place.start_beat()
        yield place.insert_batch()

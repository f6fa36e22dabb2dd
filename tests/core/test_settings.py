"""Settings: read from the environment alone; a mistake is named."""

import json

import pytest

from core.catalogue import EVENTS
from core.errors import BadSettings
from core.routes import Route
from core.settings import Settings
from ops.routing import routed_as, types_by_queue, types_to_nobody

TYPES = [
    "BatchContentProvisioningCompleted",
    "BatchEssaysReady",
    "ExcessContentProvisioned",
    "BatchValidationErrors",
    "BatchReadinessTimeout",
    "BatchCancelled",
]


def test_nothing_set_gives_the_defaults():
    settings = Settings.from_env({})

    assert settings.database_url is None
    assert (settings.queue, settings.events_queue) == ("els", "els.events")
    assert settings.queues == ("els.control", "els.internal", "els")
    assert settings.retry_for == 900
    assert (settings.ops_host, settings.ops_port) == ("127.0.0.1", 9095)
    assert settings.log_format is None


def test_values_are_read_by_their_names():
    settings = Settings.from_env(
        {
            "ELS_DATABASE_URL": "postgresql://db/els",
            "ELS_RETRY_FOR": "2.5",
            "ELS_OPS_PORT": "8080",
            "ELS_LOG_FORMAT": "console",
            "HOME": "/somewhere",
        }
    )

    assert settings.database_url == "postgresql://db/els"
    assert (settings.retry_for, settings.ops_port) == (2.5, 8080)
    assert settings.log_format == "console"


def test_other_programs_variables_are_none_of_ours():
    assert Settings.from_env({"OTHER_QUEUE": "x", "XELS_QUEUE": "x"}) == Settings()


@pytest.mark.parametrize("name", ["ELS_QUEU", "ELS_", "ELS_queue", "ELS_NO_SUCH"])
def test_an_unknown_variable_is_an_error_that_lists_the_known_ones(name):
    with pytest.raises(BadSettings, match=rf"(?s){name}.*ELS_QUEUE"):
        Settings.from_env({name: "x"})


@pytest.mark.parametrize("name", ["ELS_QUEUE", "ELS_OPS_PORT", "ELS_EVENT_ROUTES", "ELS_NO_SUCH"])
def test_an_empty_variable_counts_as_absent(name):
    assert Settings.from_env({name: ""}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ELS_DATABASE_PREPARE", "yes"),
        ("ELS_OPS_PORT", "http"),
        ("ELS_OPS_PORT", "0"),
        ("ELS_OPS_PORT", "65536"),
        ("ELS_HEALTH_PORT", "0"),
        ("ELS_OPS_ALLOWED_HOSTS", "els.example:9095"),
        ("ELS_OPS_ALLOWED_HOSTS", "https://els.example"),
        ("ELS_OPS_ALLOWED_HOSTS", "els.*"),
        ("ELS_POSTGRES_PORT", "-1"),
        ("ELS_RETRY_FOR", "-1"),
        ("ELS_RETRY_FOR", "15 min"),
        ("ELS_VISIBILITY_TIMEOUT", "1"),
        ("ELS_SWEEP_EVERY", "0"),
        ("ELS_PENDING_ALARM_S", "-1"),
        ("ELS_PENDING_ALARM_S", "an hour"),
        ("ELS_CONCURRENCY", "0"),
        ("ELS_CONCURRENCY", "two"),
        ("ELS_EAGER", "perhaps"),
        ("ELS_LOG_FORMAT", "xml"),
        ("ELS_LOG_LEVEL", "LOUD"),
        ("ELS_TRACES_ENDPOINT", "collector:4318"),
        ("ELS_TRACES_ENDPOINT", "http://"),
        ("ELS_QUEUE", "two words"),
        ("ELS_QUEUE", "q" * 101),
        ("ELS_EVENT_ROUTES", "no json"),
        ("ELS_EVENT_ROUTES", "[]"),
        ("ELS_EVENT_ROUTES", '{"BatchEssaysReady": "a.task"}'),
        ("ELS_EVENT_ROUTES", '{"BatchEssaysReady": [{"task": "a.task"}]}'),
        ("ELS_EVENT_ROUTES", '{"BatchEssaysReady": [{"task": "a", "queue": "b", "more": 1}]}'),
        ("ELS_EVENT_ROUTES", '{"BatchEssaysReady": [{"task": "a b", "queue": "b"}]}'),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_variable(name, value):
    with pytest.raises(BadSettings, match=name):
        Settings.from_env({name: value})


def test_every_bad_value_is_named():
    with pytest.raises(BadSettings, match=r"ELS_QUEUE.*ELS_OPS_PORT"):
        Settings.from_env({"ELS_QUEUE": "two words", "ELS_OPS_PORT": "http"})


def test_hosts_are_separated_by_commas():
    settings = Settings.from_env(
        {"ELS_OPS_ALLOWED_HOSTS": "els.example, *.internal,[::1], fe80::1"}
    )

    assert settings.ops_allowed_hosts == ["els.example", "*.internal", "[::1]", "fe80::1"]


@pytest.mark.parametrize("name", ["ELS_OPS_AUTH", "ELS_FLOWER_AUTH"])
def test_passwords_are_not_shown(name):
    settings = Settings.from_env({name: "user:conspicuous"})

    assert "conspicuous" not in repr(settings) + str(settings)


@pytest.mark.parametrize("name", ["ELS_OPS_AUTH", "ELS_FLOWER_AUTH"])
@pytest.mark.parametrize("login", ["anna", ":", ":sesame", "anna:", " :sesame"])
def test_a_login_has_a_user_and_a_password(name, login):
    with pytest.raises(BadSettings, match=f"{name}: must be user:password"):
        Settings.from_env({name: login})


@pytest.mark.parametrize(
    ("event_type", "task"),
    [
        ("BatchContentProvisioningCompleted", "els.events.batch_content_provisioning_completed"),
        ("BatchEssaysReady", "els.events.batch_essays_ready"),
        ("ExcessContentProvisioned", "els.events.excess_content_provisioned"),
        ("BatchValidationErrors", "els.events.batch_validation_errors"),
        ("BatchReadinessTimeout", "els.events.batch_readiness_timeout"),
        ("BatchCancelled", "els.events.batch_cancelled"),
    ],
)
def test_an_event_goes_to_the_task_of_its_name(event_type, task):
    assert Settings().routes(event_type) == [Route(task=task, queue="els.events")]


def test_the_queue_of_events_may_be_another():
    settings = Settings.from_env({"ELS_EVENTS_QUEUE": "downstream"})

    assert {settings.routes(name)[0].queue for name in TYPES} == {"downstream"}


def test_a_slot_is_told_to_nobody_unless_a_route_asks():
    asked = Settings.from_env(
        {"ELS_EVENT_ROUTES": '{"EssaySlotAssigned": [{"task": "a.b", "queue": "c"}]}'}
    )

    assert Settings().routes("EssaySlotAssigned") == []
    assert Settings().opt_in_events() == set()
    assert asked.opt_in_events() == {"EssaySlotAssigned"}
    assert asked.routes("EssaySlotAssigned") == [Route(task="a.b", queue="c")]


def test_a_route_for_an_unknown_type_is_an_error_that_names_the_nearest():
    routes = '{"BatchEssayReady": [{"task": "a.b", "queue": "c"}]}'

    with pytest.raises(BadSettings, match=r"ELS_EVENT_ROUTES.*BatchEssayReady.*BatchEssaysReady"):
        Settings.from_env({"ELS_EVENT_ROUTES": routes})


def test_a_type_may_go_elsewhere_to_many_or_nowhere():
    settings = Settings.from_env(
        {
            "ELS_EVENT_ROUTES": '{"BatchEssaysReady": [{"task": "a", "queue": "b"},'
            ' {"task": "c", "queue": "d"}], "BatchCancelled": []}'
        }
    )

    assert settings.routes("BatchEssaysReady") == [
        Route(task="a", queue="b"),
        Route(task="c", queue="d"),
    ]
    assert settings.routes("BatchCancelled") == []
    assert len(settings.routes("ExcessContentProvisioned")) == 1


CATCH_ALL = [{"task": "els.event", "queue": "nlp"}]


def routed(**entries):
    return Settings.from_env({"ELS_EVENT_ROUTES": json.dumps(entries)})


def test_a_star_is_for_every_type_without_an_entry_of_its_own():
    settings = routed(**{"*": CATCH_ALL, "BatchCancelled": [], "MessageRefused": CATCH_ALL})

    led = {name for name in EVENTS if settings.routes(name) == [Route(**CATCH_ALL[0])]}
    assert led == {*TYPES, "MessageRefused"} - {"BatchCancelled"}
    assert settings.opt_in_events() == {"MessageRefused"}
    assert types_by_queue(settings) == {"nlp": led}


def test_a_star_may_lead_to_several_receivers_or_nowhere():
    two = [{"task": "els.event", "queue": "nlp"}, {"task": "els.event", "queue": "billing"}]

    assert list(types_by_queue(routed(**{"*": two}))) == ["billing", "nlp"]
    assert types_by_queue(routed(**{"*": []})) == {}
    assert types_by_queue(Settings()) == {"els.events": set(TYPES)}


@pytest.mark.parametrize(
    ("routes", "says"),
    [
        ("{'BatchCancelled': []}", "this is no JSON"),
        ("[" * 100_000, "nests too deep"),
        ('["BatchCancelled"]', "must be an object from event type to a list of routes"),
        ("null", "must be an object"),
        ('{"BatchCancelled": {"task": "a", "queue": "b"}}', "BatchCancelled must have a list"),
        ('{"BatchCancelled": null}', "[] sends the type nowhere"),
        ('{"BatchCancelled": ["nlp"]}', "route 1 of BatchCancelled must be an object"),
        ('{"BatchCancelled": [{"queue": "b"}]}', "route 1 of BatchCancelled has no task"),
        ('{"BatchCancelled": [{"task": "a"}]}', "route 1 of BatchCancelled has no queue"),
        ('{"*": [{"task": "a", "queue": ""}]}', 'route 1 of * has "" as its queue'),
        ('{"*": [{"task": "a", "queue": null}]}', "has null as its queue"),
        ('{"*": [{"task": "a", "queue": 7}]}', "has 7 as its queue"),
        ('{"*": [{"task": "a", "queue": "two words"}]}', 'has "two words" as its queue'),
        ('{"*": [{"task": "a", "queue": "b\\n"}]}', "as its queue"),
        ('{"*": [{"task": "a", "queues": "b"}]}', 'has no field "queues"; did you mean queue?'),
        ('{"*": [{"Task": "a", "queue": "b"}]}', 'has no field "Task"; did you mean task?'),
        ('{"*": [{"task": "a", "queue": "b", "exchange": "c"}]}', "a task and a queue, nothing"),
        ('{"*": [{"task": "a", "queue": "els"}]}', "leads to els, which the service itself"),
        ('{"*": [{"task": "a", "queue": "els.control"}]}', "leads to els.control"),
        ('{"*": [{"task": "a", "queue": "b"}, {"queue": "b", "task": "a"}]}', "same route twice"),
        ('{"BatchCancelled": [], "BatchCancelled": []}', '"BatchCancelled" stands there twice'),
        ('{"*": [{"task": "a", "task": "b", "queue": "c"}]}', '"task" stands there twice'),
        ('{"batch_cancelled": []}', "the nearest is BatchCancelled"),
        ('{"els.events.batch_essays_ready": []}', "the nearest is BatchEssaysReady"),
        ('{"BATCHESSAYSREADY": []}', "the nearest is BatchEssaysReady"),
        ('{"": []}', 'there is no event ""'),
        ('{"**": []}', '"*" is for every type'),
        ('{"all": []}', '"*" is for every type'),
    ],
)
def test_a_mistake_in_the_routes_is_named_with_the_next_step(routes, says):
    with pytest.raises(BadSettings) as refused:
        Settings.from_env({"ELS_EVENT_ROUTES": routes})

    assert str(refused.value).startswith("ELS_EVENT_ROUTES: ")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_a_route_to_the_queue_of_another_setting_is_seen():
    routes = '{"*": [{"task": "a", "queue": "q.internal"}]}'

    with pytest.raises(BadSettings, match=r"leads to q\.internal"):
        Settings.from_env({"ELS_EVENT_ROUTES": routes, "ELS_QUEUE": "q"})
    with pytest.raises(BadSettings, match="ELS_EVENTS_QUEUE: the service itself consumes els"):
        Settings.from_env({"ELS_EVENTS_QUEUE": "els"})


def test_whoever_watches_the_queues_follows_the_routes_of_the_workers():
    workers = Settings.from_env(
        {"ELS_EVENT_ROUTES": json.dumps({"*": CATCH_ALL, "BatchCancelled": []})}
    )
    other = Settings(events_queue="elsewhere", ops_port=7)

    same = routed_as(other, workers.routing())

    assert routed_as(other, None) == other
    assert types_by_queue(same) == types_by_queue(workers)
    assert types_to_nobody(same) == {"BatchCancelled"}
    assert same.ops_port == 7
    assert types_by_queue(routed_as(other, Settings().routing())) == types_by_queue(Settings())

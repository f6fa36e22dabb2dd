"""Settings: read from the environment alone; a mistake is named."""

import pytest

from core.errors import BadSettings
from core.settings import Route, Settings

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

"""Secrets that a variable with `_FILE` at its end names."""

import pytest
from pydantic import SecretStr

from core.errors import BadSettings
from core.settings import PREFIX, Settings

PASSWORD = "secret-word"
SECRETS = {
    "ELS_DATABASE_URL": f"postgresql://user:{PASSWORD}@host/els",
    "ELS_REDIS_URL": f"redis://:{PASSWORD}@host:6379/0",
    "ELS_BROKER_URL": f"amqp://user:{PASSWORD}@host:5672//",
    "ELS_OPS_AUTH": f"user:{PASSWORD}",
    "ELS_FLOWER_AUTH": f"user:{PASSWORD}",
}


@pytest.fixture
def secret(tmp_path):
    def write(content):
        path = tmp_path / "secret"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    return write


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["bare", "line", "windows"])
@pytest.mark.parametrize("name", SECRETS)
def test_a_file_holds_what_the_variable_would(secret, name, end):
    value = SECRETS[name]

    read = Settings.from_env({f"{name}_FILE": secret(value + end)})

    assert read == Settings.from_env({name: value})


def test_a_file_may_hold_json(secret):
    login = '{"provider": "github", "allow": "a", "key": "k", "secret": "s", "redirect_uri": "u"}'

    assert Settings.from_env({"ELS_FLOWER_OAUTH_FILE": secret(login)}).flower_oauth


@pytest.mark.parametrize("name", SECRETS)
def test_a_value_and_a_file_are_an_error(secret, name):
    with pytest.raises(BadSettings, match=rf"^{name} and {name}_FILE are both set") as raised:
        Settings.from_env({name: PASSWORD, f"{name}_FILE": secret(PASSWORD)})

    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        (f"user:{PASSWORD}\nother:{PASSWORD}", "must hold one line"),
        ("x" * 70_000, "must hold one line"),
        (PASSWORD.encode() + b"\xff", "not UTF-8"),
    ],
    ids=["empty", "blank", "two lines", "long", "bytes"],
)
def test_a_file_that_holds_no_value_is_an_error_that_names_it(secret, content, said):
    path = secret(content)

    with pytest.raises(BadSettings, match=said) as raised:
        Settings.from_env({"ELS_OPS_AUTH_FILE": path})

    assert f"ELS_OPS_AUTH_FILE: {path}" in str(raised.value)
    assert PASSWORD not in str(raised.value)


@pytest.mark.parametrize("path", ["missing", "."], ids=["missing", "a folder"])
def test_a_file_that_cannot_be_read_is_an_error_that_says_why(tmp_path, path):
    with pytest.raises(BadSettings, match=r"ELS_OPS_AUTH_FILE: .* cannot be read: (No|Is a) "):
        Settings.from_env({"ELS_OPS_AUTH_FILE": str(tmp_path / path)})


@pytest.mark.parametrize("name", ["ELS_QUEUE_FILE", "ELS_HOME_FILE", "ELS_NOTHING_URL_FILE"])
def test_only_what_may_hold_a_password_can_be_a_file(secret, name):
    with pytest.raises(BadSettings, match=f"unknown setting {name}"):
        Settings.from_env({name: secret("x")})


def test_an_empty_name_of_a_file_counts_as_absent():
    assert Settings.from_env({"ELS_OPS_AUTH_FILE": ""}) == Settings()


def test_every_setting_that_holds_a_secret_can_be_a_file(secret):
    fields = Settings.model_fields.items()
    holders = [name for name, field in fields if field.annotation == SecretStr | None]

    assert holders
    for name in holders:
        Settings.from_env({f"{PREFIX}{name.upper()}_FILE": secret(f"user:{PASSWORD}")})

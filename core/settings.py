"""Settings: every `ELS_*` variable. Nothing else reads the environment."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    Json,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from core import routes
from core.catalogue import OPT_IN
from core.errors import BadSettings
from core.routes import NAME, Route
from core.servers import secret_files
from core.servers.postgres_url import complete_database
from core.servers.tls import TLS, check_files
from core.servers.urls import complete

PREFIX = "ELS_"
HOST = r"\*|(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]|(?=.*:.*:)[0-9A-Fa-f:.]+"  # or pattern


class Login(BaseModel):
    """The OAuth provider of Flower's users; `allow` is a pattern of their mail addresses."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    provider: Literal["google", "github", "gitlab", "okta"]
    allow: str
    key: str
    secret: SecretStr
    redirect_uri: str


class Settings(BaseModel):
    """Durations are in seconds. Read with `Settings.from_env()`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tls_ca: str | None = None  # above the URLs, which these complete
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_verify: bool | None = None
    redis_master: str | None = Field(default=None, pattern=NAME)
    database_url: str | None = None
    database_read_url: str | None = None
    database_prepare: Literal["auto", "on", "off"] = "auto"
    redis_url: str | None = None
    broker_url: str | None = None
    home: Path = Path(".els")
    queue: str = Field(default="els", pattern=NAME)
    events_queue: str = Field(default="els.events", pattern=NAME)
    event_routes: dict[str, list[Route]] = {}
    retry_for: float = Field(default=900, gt=0)
    visibility_timeout: float = Field(default=60, ge=5)
    sweep_every: float = Field(default=5, gt=0)
    relay_every: float = Field(default=1, gt=0)
    pending_alarm_s: float = Field(default=300, ge=0, le=31_622_400)
    retention_days: float | None = Field(default=None, gt=0, le=36_500)
    concurrency: int = Field(default=2, ge=1, le=64)
    remote_control: bool = False
    eager: bool = False
    postgres_port: int | None = Field(default=None, ge=1, le=65535)
    valkey_port: int | None = Field(default=None, ge=1, le=65535)
    ops_host: str = "127.0.0.1"
    ops_port: int = Field(default=9095, ge=1, le=65535)
    ops_auth: SecretStr | None = None
    ops_actions: bool = False
    ops_allowed_hosts: list[str] = []
    health_port: int | None = Field(default=None, ge=1, le=65535)
    flower_host: str = "127.0.0.1"
    flower_port: int = Field(default=5555, ge=1, le=65535)
    flower_auth: SecretStr | None = None
    flower_oauth: Json[Login] | None = None
    log_format: Literal["json", "console"] | None = None  # None: as stderr is a terminal or not
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    traces_endpoint: str | None = Field(default=None, pattern=r"^https?://[^/]")
    crashpoint: str | None = None

    @field_validator("tls_ca", "tls_cert", "tls_key")
    @classmethod
    def _readable(cls, file: str | None, info: ValidationInfo) -> str | None:
        if not file:
            return None
        path = str(Path(file).expanduser().absolute())  # other processes have other folders
        if info.field_name == "tls_ca":
            check_files(path, None, None)
        if info.field_name == "tls_key":
            check_files(None, info.data.get("tls_cert"), path)
        return path

    @field_validator("database_url", "database_read_url", "redis_url", "broker_url")
    @classmethod
    def _with_tls(cls, url: str | None, info: ValidationInfo) -> str | None:
        given = info.data
        if not url or "tls_verify" not in given or "tls_key" not in given:
            return url  # or they are wrong, which is an error of theirs
        tls = TLS(given["tls_ca"], given["tls_cert"], given["tls_key"], given["tls_verify"])
        name = f"{PREFIX}{info.field_name}".upper()
        if name.startswith("ELS_DATABASE"):
            return complete_database(url, tls)
        return complete(name, url, tls, given.get("redis_master"))

    @field_validator("events_queue")
    @classmethod
    def _not_our_own(cls, queue: str, info: ValidationInfo) -> str:
        if queue in _consumed(info):
            raise ValueError(f"the service itself consumes {queue}; events need another queue")
        return queue

    @field_validator("ops_auth", "flower_auth")
    @classmethod
    def _login(cls, login: SecretStr | None) -> SecretStr | None:
        user, _, password = login.get_secret_value().partition(":") if login else ("-", "", "-")
        if not user.strip() or not password:
            raise ValueError("must be user:password, and neither of the two may be empty")
        return login

    @field_validator("event_routes", mode="before")
    @classmethod
    def _routes(cls, value: object, info: ValidationInfo) -> object:
        given = routes.parse(value) if isinstance(value, str) else value
        routes.check(given, _consumed(info))
        return given

    @field_validator("ops_allowed_hosts", mode="before")
    @classmethod
    def _hosts(cls, given: str | list[str]) -> list[str]:
        parts = given.split(",") if isinstance(given, str) else given
        hosts = [host for part in parts if (host := part.strip())]
        for wrong in (host for host in hosts if not re.fullmatch(HOST, host)):
            raise ValueError(f"{wrong} is no name or address of a host: give it without a port")
        return hosts

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings. Raises BadSettings, which names each wrong variable and the rule.

        An empty variable counts as absent: that is how compose files write optional ones. A
        variable that may hold a password can name a file: see `core/servers/secret_files.py`.
        """
        environ = os.environ if environ is None else environ
        given = {k: v for k, v in environ.items() if k.startswith(PREFIX) and v != ""}
        known = {PREFIX + name.upper() for name in cls.model_fields}
        if unknown := sorted(given.keys() - known - secret_files.names(known)):
            listed = ", ".join(sorted(known))
            raise BadSettings(f"unknown setting {', '.join(unknown)}; the known ones are {listed}")
        read = secret_files.read_files(given, known)
        values = {name.removeprefix(PREFIX).lower(): value for name, value in read.items()}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_input=False)
            said = [f"{PREFIX}{e['loc'][0]}".upper() + f": {e['msg']}" for e in wrong]
            raise BadSettings("; ".join(said).replace(": Value error, ", ": ")) from error

    @property
    def internal_queue(self) -> str:
        """The queue of the completion chord, which only workers write to."""
        return f"{self.queue}.internal"

    @property
    def control_queue(self) -> str:
        """The queue of the sweep and the relay, which only beat writes to."""
        return f"{self.queue}.control"

    def server_urls(self, who: str = "the service") -> tuple[str, str]:
        """Return the URLs of Postgres and Redis. Raises BadSettings where one is missing."""
        if not (self.database_url and self.redis_url):
            raise BadSettings(
                f"{who} needs ELS_DATABASE_URL and ELS_REDIS_URL: `els run` starts both servers,"
                " `els env` prints the URLs"
            )
        return self.database_url, self.redis_url

    @property
    def broker_or_redis_url(self) -> str:
        """The broker is the Redis, unless somebody names another one; empty: neither is named."""
        return self.broker_url or self.redis_url or ""

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues of a worker, the most urgent first."""
        return self.control_queue, self.internal_queue, self.queue

    def refuse_eager(self, what: str) -> None:
        """Raises BadSettings where callers run the tasks: `what` would have nothing to do."""
        if self.eager:
            raise BadSettings(
                f"{what} makes no sense with ELS_EAGER, which lets callers run the tasks"
                " in their own process, for unit tests; unset it"
            )

    def routes(self, event_type: str) -> list[Route]:
        return routes.routes_of(event_type, self.event_routes, self.events_queue)

    def routing(self) -> str:
        """Write where events go, for those who watch the queues of the receivers."""
        return self.model_dump_json(include={"events_queue", "event_routes"})

    def opt_in_events(self) -> frozenset[str]:
        return frozenset(filter(self.routes, OPT_IN))


def _consumed(info: ValidationInfo) -> list[str]:
    """List the queues that the workers consume: of messages, and of what RabbitMQ dropped."""
    queue = info.data.get("queue")
    return [f"{queue}{end}" for end in ("", ".internal", ".control", ".dead")] if queue else []

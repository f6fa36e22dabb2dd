"""URLs of servers: which ones there are, and what the settings add to them."""

import subprocess
from urllib.parse import parse_qs, urlsplit

import pytest

from core.errors import BadSettings
from core.servers.postgres_url import address
from core.servers.redis_client import connect
from core.servers.urls import for_redis_py, sentinels
from core.settings import Settings


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A certificate that signs itself, and its key."""
    folder = tmp_path_factory.mktemp("files")
    made = ["-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out", "cert.pem"]
    argv = ["openssl", "req", "-x509", *made, "-subj", "/CN=els"]
    subprocess.run(argv, cwd=folder, capture_output=True, check=True)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def given(files):
    cert, key = map(str, files)
    return {"ELS_TLS_CA": cert, "ELS_TLS_CERT": cert, "ELS_TLS_KEY": key}


def query(url):
    return {name: value for name, [value] in parse_qs(urlsplit(url).query).items()}


def read(**environ):
    return Settings.from_env(environ)


# --- what cannot be ------------------------------------------------------------------------------

REDIS_SCHEMES = "redis://, rediss://, unix://, redis+socket://, sentinel://"


@pytest.mark.parametrize("name", ["ELS_REDIS_URL", "ELS_BROKER_URL"])
@pytest.mark.parametrize(
    "url",
    [
        *("kafka://u:sesame@h:1", "sqs://u:sesame@h", "memcached://h", "http://u:sesame@h"),
        *("valkey://:sesame@h", "redis:/h", "h:6379", "://h", "REDIS://h", "redi://:sesame@h"),
        *("redis+sentinel://:sesame@h/x", "postgresql://u:sesame@h/d", "memory://", "nonsense"),
    ],
)
def test_another_scheme_is_one_line_that_lists_those_there_are(name, url):
    with pytest.raises(BadSettings) as refusal:
        read(**{name: url})

    text = str(refusal.value)
    assert text.startswith(f"{name}: it must begin with one of {REDIS_SCHEMES}")
    assert ("amqp://" in text) == (name == "ELS_BROKER_URL")
    assert "sesame" not in text
    assert "\n" not in text


def test_slots_are_not_kept_in_rabbitmq():
    with pytest.raises(BadSettings, match="must begin with"):
        read(ELS_REDIS_URL="amqp://h")


@pytest.mark.parametrize("scheme", ["redis+cluster", "rediss+cluster", "redis-cluster"])
def test_redis_cluster_is_refused_by_its_name(scheme):
    with pytest.raises(BadSettings, match="Redis Cluster is not supported: give one Redis"):
        read(ELS_REDIS_URL=f"{scheme}://:sesame@h:6379")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h:6379/0;redis://h2:6379/0", "several servers"),
        ("amqp://h;redis://h2", "several servers"),
        ("redis://:sesame@h:no/0", "its port must be a number from 1 to 65535"),
        ("redis://:sesame@h:65536/0", "its port must be a number from 1 to 65535"),
        ("amqp://:sesame@h:0//", "its port must be a number from 1 to 65535"),
        ("rediss://:sesame@[::1]:-1/0", "its port must be a number from 1 to 65535"),
        ("sentinel://h:99999/0?master_name=x", "its port must be a number from 1 to 65535"),
        ("redis://:ses#ame@h:1/0", "in a password write @ .* as %40"),
        ("redis://u:12#sesame@h:1/0", "it has a #; in a password write @"),
        ("redis://u:12?sesame@h:1/0", "after its . stands no parameter; in a password"),
        ("sentinel://u:12?sesame@h:1/0", "after its . stands no parameter; in a password"),
        ("redis://h/mine", "its database is a number"),
        ("redis://h/-1", "its database is a number"),
        ("redis://h/3/4", "its database is a number"),
        ("unix:///run/redis.sock?db=mine", "its database is a number"),
        ("unix://run/redis.sock", "a socket is a path and no host"),
        ("redis://h/0?socket_timout=3", "no parameter socket_timout; there are .* socket_timeout"),
        ("redis://h/0?socket_timeout=long", "its socket_timeout cannot be long"),
        ("unix:///run/redis.sock?max_connections=few", "its max_connections cannot be few"),
        ("redis://h/0?ssl_ca_certs=/x", "begin the URL with rediss://"),
        ("amqp://h//?ssl_cert_reqs=required", "begin the URL with amqps://"),
        ("rediss://h/0?ssl_ca_cert=/x", "no parameter ssl_ca_cert; there are ssl_ca_certs"),
        ("rediss://h/0?ssl_cert_reqs=perhaps", "ssl_cert_reqs is required or none"),
        ("amqps://h//?ssl_check_hostname=perhaps", "ssl_check_hostname is true or false"),
        ("rediss://h/0?ssl_ca_certs=/no/such.pem", "/no/such.pem .*No such file"),
        ("rediss://h/0?ssl_keyfile=/no/such.pem", "but no certificate"),
        ("sentinel://h:1/0", "ELS_REDIS_MASTER"),
        ("sentinel://h:1/mine/0?master_name=x", "number of a database"),
        ("sentinel://h:x/0?master_name=x", "its port"),
        ("sentinel://h:1/0?master_name=x;redis://h", "does not begin with sentinel://"),
        ("sentinel://h:1/0?master=x", "no parameter master"),
        ("sentinel://a@h:1/0?master_name=x;sentinel://b@h:2", "differ"),
        ("sentinel://h:1/0;sentinel://h:2/1?master_name=x", "differ"),
    ],
)
def test_what_cannot_be_right_is_refused_at_start(url, said):
    with pytest.raises(BadSettings, match=f"ELS_BROKER_URL: .*{said}") as refusal:
        read(ELS_BROKER_URL=url)

    assert "sesame" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:sesame@h:99999/x",
        "postgresql+psycopg://u:sesame@h:no/x",
        "postgresql://u:sesame@h:5432,h2:0/x",
        "postgresql://u:a/sesame@h:5432/x",
        "postgresql://u:sesame@h/x?port=99999",
        "host=h,h2 port=5432,70000 password=sesame",
    ],
)
def test_a_port_of_postgres_that_is_none_is_refused_at_start(url):
    with pytest.raises(BadSettings, match="its port must be a number from 1 to 65535") as refusal:
        read(ELS_DATABASE_URL=url)

    assert "sesame" not in str(refusal.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://[::1]:5432/x",
        "postgresql:///x",
        "postgresql://u:a%40:b@%2Frun%2Fpg:5432/x",
        "postgresql://h:,h2:5433/x",
        "postgresql://u@/x?host=/run/pg",
        "host=h,h2 port=5432",
        "dbname=x",
    ],
)
def test_a_port_of_postgres_may_be_left_out(url):
    assert read(ELS_DATABASE_URL=url).database_url == url


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ELS_TLS_CA", "/no/such.pem", "No such file"),
        ("ELS_TLS_KEY", "/no/such.pem", "but no certificate"),
        ("ELS_TLS_VERIFY", "perhaps", "boolean"),
        ("ELS_REDIS_MASTER", "two words", "pattern"),
    ],
)
def test_a_wrong_tls_setting_is_named(name, value, said):
    with pytest.raises(BadSettings, match=f"{name}: .*{said}"):
        read(**{name: value})


def test_a_key_of_another_certificate_is_named(files, tmp_path):
    cert, key = files
    argv = ["openssl", "genrsa", "-out", str(tmp_path / "other.pem"), "2048"]
    subprocess.run(argv, capture_output=True, check=True)

    with pytest.raises(BadSettings, match=r"ELS_TLS_KEY: .*no certificate and its key.*mismatch"):
        read(ELS_TLS_CERT=str(cert), ELS_TLS_KEY=str(tmp_path / "other.pem"))
    with pytest.raises(BadSettings, match=r"ELS_TLS_CA: .*holds no certificates"):
        read(ELS_TLS_CA=str(key))


# --- TLS -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["rediss://:pw@h:1/0", "amqps://u:p@h:1//"])
def test_a_bare_url_with_tls_is_verified(url):
    asked = query(read(ELS_BROKER_URL=url).broker_url)

    assert asked == {"ssl_cert_reqs": "required", "ssl_check_hostname": "true"}


@pytest.mark.parametrize("url", ["rediss://:pw@h:1/0", "amqps://u:p@h:1//"])
def test_settings_complete_a_url_with_tls(given, url):
    asked = query(read(**given, ELS_BROKER_URL=url).broker_url)

    assert asked["ssl_ca_certs"] == given["ELS_TLS_CA"]
    assert asked["ssl_certfile"] == given["ELS_TLS_CERT"]
    assert asked["ssl_keyfile"] == given["ELS_TLS_KEY"]


def test_each_node_of_rabbitmq_gets_the_same(given):
    urls = read(**given, ELS_BROKER_URL="amqps://u:p@h//;amqps://u:p@h2//").broker_url.split(";")

    assert query(urls[0]) == query(urls[1])
    assert query(urls[1])["ssl_cert_reqs"] == "required"


@pytest.mark.parametrize("word", ["none", "CERT_NONE"])
def test_the_url_wins(given, files, word):
    cert, _ = map(str, files)
    url = f"rediss://h/0?ssl_certfile={cert}&ssl_cert_reqs={word}"
    with pytest.raises(BadSettings, match="no certificate and its key"):
        read(**given, ELS_REDIS_URL=url)  # the key of the settings is not mixed in

    asked = query(read(**given, ELS_REDIS_URL=f"rediss://h/0?ssl_cert_reqs={word}").redis_url)
    assert asked["ssl_cert_reqs"] == "none"
    assert asked["ssl_check_hostname"] == "false"


def test_verification_ends_by_name_only(given):
    asked = query(read(**given, ELS_TLS_VERIFY="0", ELS_REDIS_URL="rediss://h/0").redis_url)

    assert (asked["ssl_cert_reqs"], asked["ssl_check_hostname"]) == ("none", "false")


def test_completing_twice_changes_nothing(given):
    urls = {"ELS_REDIS_URL": "rediss://h/0", "ELS_DATABASE_URL": "postgresql://db/x"}
    first = read(**given, **urls)

    again = read(**given, ELS_REDIS_URL=first.redis_url, ELS_DATABASE_URL=first.database_url)

    assert (again.redis_url, again.database_url) == (first.redis_url, first.database_url)


@pytest.mark.parametrize(
    "url",
    ["redis://:pw@h:1/0", "unix:///run/redis.sock?db=1", "redis+socket:///run/redis.sock"],
)
def test_a_url_without_tls_stays_as_written(given, url):
    assert read(**given, ELS_REDIS_URL=url).redis_url == url


# --- Postgres ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *(
            "postgresql://els:p@db:5432/els",
            "postgres://db,db2:5433/els",
            "postgresql:///x?host=db",
        ),
        *("postgresql+psycopg://db/x?connect_timeout=3", "host=db dbname=x"),
        *("postgresql://[2001:db8::1]:5432/x", "postgresql://127.0.0.1,db/x"),
        *("postgresql:///x?hostaddr=10.0.0.1", "hostaddr=10.0.0.1 dbname=x"),
    ],
)
def test_a_remote_postgres_is_verified_where_an_authority_is_named(given, url):
    asked = address(read(**given, ELS_DATABASE_URL=url).database_url).conninfo

    assert "sslmode=verify-full" in asked
    assert f"sslrootcert={given['ELS_TLS_CA']}" in asked
    assert f"sslkey={given['ELS_TLS_KEY']}" in asked


@pytest.mark.parametrize(
    "url",
    [
        *("postgresql://els:p@127.0.0.1:5432/els", "postgresql://localhost/x", "postgresql:///x"),
        *("postgresql:///x?host=/run/postgresql", "postgresql://%2Frun%2Fpg/x", "dbname=x"),
        *("postgresql://db/x?sslmode=disable", "postgresql://[::1]/x", "service=els"),
    ],
)
def test_postgres_on_this_host_or_by_another_word_stays_as_written(given, url):
    assert read(**given, ELS_DATABASE_URL=url).database_url == url


def test_without_tls_settings_postgres_stays_as_written():
    assert read(ELS_DATABASE_URL="postgresql://db/x").database_url == "postgresql://db/x"


@pytest.mark.parametrize(
    ("said", "mode"),
    [({"ELS_TLS_VERIFY": "1"}, "verify-full"), ({"ELS_TLS_VERIFY": "0"}, "require")],
)
def test_a_word_on_verification_decides_for_postgres(given, said, mode):
    both = {**given, **said}

    assert f"sslmode={mode}" in read(**both, ELS_DATABASE_URL="postgresql://db/x").database_url


def test_a_url_that_verifies_gets_the_authority(given):
    url = read(**given, ELS_DATABASE_URL="postgresql://127.0.0.1/x?sslmode=verify-ca").database_url

    assert query(url)["sslrootcert"] == given["ELS_TLS_CA"]
    assert query(url)["sslmode"] == "verify-ca"


# --- Sentinel ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://u:p%40w@a:26379/3;sentinel://u:p%40w@b:1/3",
        "sentinel://u:p%40w@a;sentinel://b:1/3",
        "sentinel://a:26379;sentinel://u:p%40w@b:1/3",
        "sentinel://u:p%40w@a:26379,b:1/3",
        "sentinel://u:p%40w@a:26379;b:1/3",
    ],
)
def test_sentinels_may_be_written_in_several_ways(url):
    found = sentinels(read(ELS_REDIS_URL=url, ELS_REDIS_MASTER="mine").redis_url)

    assert found.hosts == [("a", 26379), ("b", 1)]
    assert (found.primary, found.db) == ("mine", 3)
    assert (found.username, found.password) == ("u", "p@w")
    assert (found.own, found.tls) == ({}, {})


def test_sentinels_have_passwords_and_tls_of_their_own(given):
    url = "sentinel://:pw@h/0?sentinel_password=other&ssl_cert_reqs=required&master_name=theirs"

    found = sentinels(read(**given, ELS_REDIS_URL=url, ELS_REDIS_MASTER="mine").redis_url)

    assert found.primary == "theirs"
    assert (found.password, found.own) == ("pw", {"password": "other"})
    assert found.tls["ssl_ca_certs"] == given["ELS_TLS_CA"]


def test_sentinels_without_a_word_of_tls_speak_none(given):
    url = read(**given, ELS_REDIS_URL="sentinel://h/0?master_name=x").redis_url

    assert not sentinels(url).tls


@pytest.mark.parametrize("url", ["rediss://h:1/0", "rediss://h:1/0?ssl_cert_reqs=CERT_REQUIRED"])
def test_a_client_of_a_bare_url_verifies_too(url):
    with connect(url) as client:
        said = client.connection_pool.connection_kwargs

    assert (said["ssl_cert_reqs"], said["ssl_check_hostname"]) == ("required", True)


def test_redis_py_reads_a_socket_by_its_own_scheme():
    assert for_redis_py("redis+socket:///a/b?virtual_host=2") == "unix:///a/b?db=2"
    assert for_redis_py("redis+socket:///a/b") == "unix:///a/b"
    assert for_redis_py("redis://h/0") == "redis://h/0"


def test_a_replica_is_reached_as_its_primary_is(given):
    urls = {"ELS_DATABASE_URL": "postgresql://db/x", "ELS_DATABASE_READ_URL": "postgresql://db/x"}

    settings = read(**given, **urls)

    assert settings.database_read_url == settings.database_url
    assert "sslmode=verify-full" in settings.database_read_url

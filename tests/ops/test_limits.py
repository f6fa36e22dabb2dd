"""The ops page stays up for others, whatever a client does with its connections."""

import asyncio
import base64
import resource
import socket
import time
from contextlib import ExitStack, contextmanager

import pytest
import structlog
from pydantic import SecretStr

from ops.stack.ports import free_port
from ops.web import limits, passwords, protocol, server
from ops.web.guard import Hosts
from ops.web.limits import Crowded, Places, network_of
from ops.web.passwords import Password
from tests.live.conftest import until
from tests.ops.conftest import answering, fetch
from tests.ops.served import Served

CROWD = 1_200
OTHER = "127.0.0.2"  # another client on this host
HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX-More: "


def connect(port, client="127.0.0.1", timeout=20):
    return socket.create_connection(("127.0.0.1", port), timeout, source_address=(client, 0))


def ask(port, request, client="127.0.0.1", timeout=20):
    """Send bytes; return all that is answered until the page ends the connection."""
    with connect(port, client, timeout) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65_536), b"")).decode()


def get(port, path="/", client="127.0.0.1", **headers):
    """Return the status of a page for a client."""
    given = {"Host": "localhost", "Connection": "close", **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    answer = ask(port, f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode(), client)
    return int(answer.split(" ")[1])


def ended(connection):
    """Tell whether the page has ended a connection."""
    connection.setblocking(False)
    try:
        return connection.recv(65_536) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


@pytest.fixture(scope="module", autouse=True)
def _enough_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < 4_096:
        pytest.skip(f"this process may open only {hard} files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4_096), hard))


@contextmanager
def crowd(port, request, number=CROWD, client="127.0.0.1"):
    """Hold so many connections that have sent only this."""
    with ExitStack() as stack:
        held = []
        for _ in range(number):
            held.append(stack.enter_context(connect(port, client)))
            held[-1].sendall(request)
        yield held


@pytest.fixture
def brief(monkeypatch):
    monkeypatch.setattr(protocol, "HEAD_S", 1.0)
    monkeypatch.setattr(protocol, "BEHIND_S", 1.0)


# --- connections ----------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [b"", HALF], ids=["silent", "half open"])
def test_connections_without_a_request_keep_nobody_out(served, request_):
    with crowd(served.port, request_):
        same = [get(served.port, path) for path in ("/", "/healthz", "/metrics")]
        other = [get(served.port, path, OTHER) for path in ("/", "/healthz", "/metrics")]
        held = protocol.connections_of(served.server.server_state.connections)

    assert same == other == [200, 200, 200]
    assert len(held) <= limits.OF_CLIENT


def test_clients_that_have_all_connections_keep_nobody_else_out(served, monkeypatch):
    monkeypatch.setattr(protocol, "CONNECTIONS", 20)
    monkeypatch.setattr(protocol, "OF_CLIENT", 10)
    stream = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with crowd(served.port, stream, 10, OTHER), crowd(served.port, stream, 10, "127.0.0.3"):
        until(lambda: len(served.stream.subscriptions) == 20, what="all watch")
        statuses = {get(served.port), get(served.port), get(served.port, client="127.0.0.4")}
        refused = get(served.port, client=OTHER), get(served.port, client="127.0.0.3")
        left = len(served.stream.subscriptions)
    until(lambda: not served.stream.subscriptions, what="all are gone")

    assert statuses == {200}
    assert 503 in refused
    assert left >= 17


def test_a_head_that_is_never_finished_ends(served, brief):
    with connect(served.port) as drips, connect(served.port) as silent:
        drips.sendall(HALF)

        def drip():
            drips.sendall(b"x")
            return ended(drips)

        until(lambda: over(drip), 10, "the head that drips is given up")
        until(lambda: ended(silent), 10, "the silent one is given up")


def over(step):
    try:
        return step()
    except ConnectionError:
        return True


def test_a_late_head_is_answered_so_and_silence_is_not(served, brief):
    assert ask(served.port, HALF).startswith("HTTP/1.1 408 ")
    assert ask(served.port, b"") == ""


def test_a_client_that_does_not_read_ends(served, brief):
    request = b"GET /static/htmx.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(served.port) as connection:
        connection.sendall(request * 200)
        mine = connection.getsockname()
        until(lambda: mine in clients(served), what="it is connected")

        until(lambda: mine not in clients(served), 20, "it is given up")

        assert get(served.port) == 200


def clients(served):
    return {each.client for each in list(served.server.server_state.connections)}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nslow", 413),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
        (
            b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 44\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            b"GET /outbox HTTP/1.1\r\nHost: localhost\r\n\r\n",
            413,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 45\r\n\r\n"
            b"GET /outbox HTTP/1.1\r\nHost: localhost\r\n\r\n",
            405,
        ),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1, 2\r\n\r\nab", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n X: folded\r\nY : 1\r\n\r\n", 400),
        (b"GET /" + b"x" * 17_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000 + b"\r\n\r\n", 431),
    ],
    ids=[
        "a body that never comes",
        "a slow body",
        "chunks that never come",
        "two lengths",
        "a body that looks like a request",
        "a length that is a list",
        "two hosts",
        "no host",
        "a blank before the colon",
        "a long address",
        "a long header",
    ],
)
def test_a_request_that_no_page_makes_is_answered_once_and_ends(served, request_, status):
    began = time.monotonic()

    answer = ask(served.port, request_)

    assert answer.count("HTTP/1.1 ") == 1
    assert int(answer.split(" ")[1]) in {status, 400}
    assert time.monotonic() - began < protocol.HEAD_S / 2


# --- live pages -----------------------------------------------------------------------------------


def test_streams_are_capped_for_each_client(served):
    stream = b"GET /stream HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with crowd(served.port, stream, limits.STREAMS_OF_CLIENT):
        watching = served.stream.subscriptions
        until(lambda: len(watching) == limits.STREAMS_OF_CLIENT, what="all watch")
        refused = ask(served.port, stream.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        pages = [get(served.port), get(served.port, "/healthz")]
        with connect(served.port, OTHER) as other:
            other.sendall(stream)
            let_in = other.recv(100)
    until(lambda: not served.stream.subscriptions, what="all are gone")

    assert refused.startswith("HTTP/1.1 503 ")
    assert "retry-after: " in refused.lower()
    assert pages == [200, 200]
    assert let_in.startswith(b"HTTP/1.1 200 ")
    with served.viewer() as event:
        assert event()


def test_places_are_limited_for_each_and_for_all():
    places = Places(3, 2)
    with places.place("a"), places.place("a"):
        with pytest.raises(Crowded), places.place("a"):
            pass
        with places.place("b"), pytest.raises(Crowded), places.place("c"):
            pass

    assert not places.taken


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_a_client_is_an_address_or_an_ipv6_network(address, network):
    assert network_of(address) == network


# --- passwords ------------------------------------------------------------------------------------


def basic(password):
    return "Basic " + base64.b64encode(f"ann:{password}".encode()).decode()


@pytest.fixture
def locked(served):
    url, redis_url = served.settings.database_url, served.settings.redis_url
    with Served(url, redis_url, ops_auth="ann:sesame") as page:
        yield page


def test_wrong_passwords_are_slowed_and_logged_for_their_client_alone(locked, monkeypatch):
    monkeypatch.setattr(passwords, "FIRST_WAIT_S", 0.1)
    tries = passwords.FREE + 4
    with structlog.testing.capture_logs() as logs:
        began = time.monotonic()
        refused = {get(locked.port, Authorization=basic(f"guess-{n}")) for n in range(tries)}
        took = time.monotonic() - began
        began = time.monotonic()
        other = get(locked.port, client=OTHER, Authorization=basic("sesame"))
        other_took = time.monotonic() - began
        right = get(locked.port, Authorization=basic("sesame"))
        again = get(locked.port, Authorization=basic("sesame"))

    lines = [line for line in logs if line["event"] == "password_refused"]
    assert refused == {401}
    assert took > 0.1 + 0.2 + 0.4 + 0.8
    assert (other, right, again) == (200, 200, 200)
    assert other_took < 0.8
    assert [line["times"] for line in lines] == [*range(1, tries + 1)]
    assert {line["client"] for line in lines} == {"127.0.0.1"}
    assert "guess" not in str(logs)
    assert "ann" not in str(lines)


def test_guesses_side_by_side_are_refused(locked):
    for n in range(passwords.FREE + 2):
        get(locked.port, Authorization=basic(f"guess-{n}"))
    request = (
        f"GET / HTTP/1.1\r\nHost: localhost\r\nAuthorization: {basic('guess')}\r\n"
        "Connection: close\r\n\r\n"
    )
    with crowd(locked.port, request.encode(), 50) as held:
        answers = [b"".join(iter(lambda: each.recv(4096), b"")) for each in held]  # noqa: B023
        alive = get(locked.port, "/healthz")

    refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 429 ")]
    assert len(refused) == 50 - passwords.AT_ONCE
    assert all(b"retry-after" in answer for answer in refused)
    assert alive == 200


def test_a_page_without_a_password_in_the_request_is_no_guess(locked):
    for _ in range(20):
        assert get(locked.port) == 401

    assert get(locked.port, Authorization=basic("sesame").replace("Basic", "basic")) == 200


def test_the_clients_that_guess_are_remembered_in_bounds(monkeypatch):
    monkeypatch.setattr(passwords, "CLIENTS", 10)
    password = Password(SecretStr("ann:sesame"))

    async def guess():
        for n in range(100):
            await password.admits(f"10.0.0.{n}", b"Basic eA==")

    asyncio.run(guess())
    assert len(password.guesses) == 10


# --- names of the host ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:9095", 200),
        ("localhost.", 200),
        ("board.localhost", 200),
        ("127.0.0.1:9095", 200),
        ("[::1]:9095", 200),
        ("ops:9095", 200),
        (socket.gethostname(), 200),
        ("evil.example", 400),
        ("localhost.evil.example", 400),
        ("evil.example:9095", 400),
        ("10.1.2.3", 400),
        ("[2001:db8::1]", 400),
        ("localhost@evil.example", 400),
        ("localhost/", 400),
        ("", 400),
    ],
)
def test_a_page_is_served_only_under_its_names(served, host, status):
    assert get(served.port, Host=host) == status
    assert get(served.port, "/stream?after=nonsense", Host=host) == 400
    assert get(served.port, "/healthz", Host=host) == 200
    assert get(served.port, "/readyz", Host=host) == 200


@pytest.mark.parametrize(
    ("names", "host", "allowed"),
    [
        (["board.example"], "board.example:443", True),
        (["board.example"], "www.board.example", False),
        (["*.example"], "www.board.example", True),
        (["*.example"], "example.evil", False),
        (["10.1.2.3"], "10.1.2.3", True),
        (["[2001:db8::1]"], "[2001:DB8::1]:9095", True),
        (["*"], "evil.example", True),
        ([], "10.9.8.7", True),
    ],
)
def test_other_names_can_be_allowed(names, host, allowed):
    assert Hosts(names).allow({"server": ("10.9.8.7", 9095)}, host) is allowed


def test_a_client_cannot_give_itself_another_address(locked):
    forged = {"X-Forwarded-For": "10.0.0.1", "Authorization": basic("guess")}
    with structlog.testing.capture_logs() as logs:
        get(locked.port, **forged)

    assert [line["client"] for line in logs] == ["127.0.0.1"]


# --- the port of the probes -----------------------------------------------------------------------


@pytest.fixture
def probed(database_url):
    """An ops page with a password, and its probes on a port of their own."""
    port = free_port()
    more = {"ELS_HEALTH_PORT": str(port), "ELS_OPS_AUTH": "ann:sesame"}
    with answering("ops", "ELS_OPS_PORT", "/healthz", **more) as (url, _):
        yield url, f"http://127.0.0.1:{port}"


def test_probes_answer_without_a_password_while_the_page_is_full(probed):
    page, probes = probed
    port = int(page.rpartition(":")[2])
    with crowd(port, HALF):
        ready = fetch(f"{probes}/readyz", Host="els.example")
        alive = fetch(f"{probes}/healthz")

    assert ready == (200, '{"ready":true,"postgres":"ok","redis":"ok","broker":"ok"}')
    assert alive == (200, "alive\n")
    assert fetch(f"{probes}/")[0] == 404
    assert fetch(f"{probes}/metrics")[0] == 404
    assert fetch(f"{page}/readyz")[0] == 401


def test_the_port_of_the_probes_has_limits_of_its_own(probed):
    page, probes = probed
    with crowd(int(probes.rpartition(":")[2]), HALF):
        assert fetch(f"{probes}/healthz") == (200, "alive\n")
        assert fetch(f"{page}/healthz") == (200, "alive\n")


def test_probes_name_a_fault_and_not_its_error(database_url):
    port = free_port()
    away = {"ELS_BROKER_URL": "redis://:secret-word@127.0.0.1:9/0", "ELS_HEALTH_PORT": str(port)}
    with answering("ops", "ELS_OPS_PORT", "/healthz", **away):
        status, body = fetch(f"http://127.0.0.1:{port}/readyz")

    assert status == 503
    assert body == '{"ready":false,"postgres":"ok","redis":"ok","broker":"fault"}'


def test_a_page_that_hangs_is_not_alive(served):
    settings = served.settings.model_copy(update={"health_port": free_port()})
    page = server.server_of(served.app, "127.0.0.1", free_port())
    server.serve_probes(settings, page)
    url = f"http://127.0.0.1:{settings.health_port}/healthz"
    until(lambda: fetch(url)[0] == 200, what="the probes answer")

    page.ticked_at -= 2 * server.HUNG_S

    assert fetch(url) == (503, "the page does not run\n")

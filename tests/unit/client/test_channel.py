"""Channel options, retries, TLS and where a token may go."""

import json
import socket
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from unit.client.fake import SIZE, Service, serving

from pixvec import (
    AsyncClient,
    BadOptionError,
    Client,
    ConnectionFailedError,
    DeadlineError,
    UnavailableError,
)
from pixvec._channel import Endpoint, channel_options, resolved, service_config
from pixvec._target import is_loopback, parse_target
from pixvec.v1 import embedding_pb2_grpc as stubs


def test_a_whole_message_fits_the_retry_buffer() -> None:
    options = dict(channel_options(64 << 20, 30.0))
    assert options["grpc.max_send_message_length"] == options["grpc.max_receive_message_length"] == 64 << 20
    assert int(options["grpc.per_rpc_retry_buffer_size"]) >= 64 << 20
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert options["grpc.enable_http_proxy"] == 0


def test_the_retry_policy_is_the_contracts() -> None:
    config: Any = json.loads(service_config())
    batches, others = (entry["retryPolicy"] for entry in config["methodConfig"])
    assert set(others["retryableStatusCodes"]) == {"UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"}
    assert batches["retryableStatusCodes"] == ["UNAVAILABLE", "CANCELLED"]
    assert batches["maxAttempts"] == others["maxAttempts"] == 4
    assert config["retryThrottling"] == {"maxTokens": 10, "tokenRatio": 0.1}


def test_health_is_watched_where_there_is_another_server_to_call() -> None:
    watched: Any = json.loads(service_config(watches_health=True))
    assert watched["healthCheckConfig"] == {"serviceName": ""}
    assert "healthCheckConfig" not in json.loads(service_config())


@pytest.mark.parametrize(
    ("target", "loopback"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("[::1]:50051", True),
        ("unix:/run/pixvec.sock", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.2:1", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:1", False),
        ("dns://8.8.8.8/localhost:1", False),
        ("localhost.evil.example:50051", False),
        ("pixvec:50051", False),
        ("10.0.0.1:50051", False),
        ("0.0.0.0:50051", False),
        ("[2001:db8::1]:50051", False),
    ],
)
def test_loopback_is_told_from_the_network(target: str, loopback: bool) -> None:
    assert is_loopback(target) is loopback


@pytest.mark.parametrize(
    ("addresses", "target"),
    [
        ("127.0.0.1:1,127.0.0.2:2", "ipv4:127.0.0.1:1,127.0.0.2:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_several_addresses_are_one_target(addresses: str, target: str) -> None:
    assert resolved(addresses) == target


@pytest.mark.parametrize(
    "addresses",
    ["127.0.0.1:1,127.0.0.2", "127.0.0.1:1,", "127.0.0.1:1,[::1]:1", f"127.0.0.1:1,{'n' * 64}.test:1"],
)
def test_addresses_that_are_none_are_named(addresses: str) -> None:
    with pytest.raises(BadOptionError, match="target"):
        resolved(addresses)
    for kind in (Client, AsyncClient):
        with pytest.raises(BadOptionError, match="target"):
            kind(addresses)


def test_a_name_that_cannot_be_looked_up_is_left_out() -> None:
    assert resolved("no.invalid:1,127.0.0.1:2,gone.invalid:3") == "ipv4:127.0.0.1:2"
    with pytest.raises(
        ConnectionFailedError, match=r"no server at no.invalid:1,gone.invalid:3: no.invalid:1"
    ):
        resolved("no.invalid:1,gone.invalid:3")


@pytest.mark.parametrize("kind", [socket.AF_INET, socket.AF_INET6])
def test_hosts_of_both_kinds_are_reached_by_the_kind_that_all_have(
    kind: socket.AddressFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system prefers IPv6 of a host of both kinds, as of localhost on many systems."""
    places = {socket.AF_INET: ("127.0.0.1", 1), socket.AF_INET6: ("::1", 1, 0, 0)}

    def look_up(host: str, _port: int, **_: Any) -> list[Any]:
        families = [socket.AF_INET6, socket.AF_INET] if host == "both" else [kind]
        return [(family, socket.SOCK_STREAM, 6, "", places[family]) for family in families]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    expected = {
        socket.AF_INET: "ipv4:127.0.0.1:1,127.0.0.1:2",
        socket.AF_INET6: "ipv6:[::1]:1,[::1]:2",
    }
    assert resolved("both:1,one:2") == expected[kind]
    assert resolved("both:1,both:2") == expected[socket.AF_INET6]


async def test_a_replica_without_a_name_does_not_stop_the_others() -> None:
    with serving() as running:
        targets = ["gone.invalid:1", running.target]
        with Client(targets, timeout=10) as client:
            assert client.embed(b"cat").shape == (SIZE,)
        async with AsyncClient(targets, timeout=10) as aclient:
            assert (await aclient.embed(b"cat")).shape == (SIZE,)


def test_a_client_whose_names_are_all_gone_is_unavailable() -> None:
    with Client(["gone.invalid:1", "no.invalid:1"]) as client:
        with pytest.raises(ConnectionFailedError):
            client.embed(b"cat")
        assert not client.health()
        with pytest.raises(DeadlineError, match=r"gone.invalid"):
            client.wait_ready(timeout=0.1)


def test_a_list_of_addresses_keeps_its_token_at_home() -> None:
    with pytest.raises(BadOptionError, match="refused to send a token"):
        Client(["localhost:1", "10.0.0.1:1"], token="secret")
    Client(["localhost:1", "127.0.0.1:2"], token="secret")


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "30"])
def test_keepalive_is_a_number_of_seconds(seconds: Any) -> None:
    with pytest.raises(BadOptionError, match="keepalive_s"):
        Client("localhost:1", keepalive_s=seconds)


def test_a_token_is_not_sent_in_the_clear() -> None:
    with pytest.raises(BadOptionError, match="refused to send a token unencrypted to pixvec:50051"):
        Client("pixvec:50051", token="secret")
    assert "secret" not in repr(Endpoint("pixvec:50051", token="secret", allow_insecure_token=True))
    Endpoint("pixvec:50051", tls=True, token="secret")
    Endpoint("localhost:50051", token="secret")


def test_an_empty_target_is_refused() -> None:
    with pytest.raises(BadOptionError, match="HOST:PORT"):
        Client("")


def test_tls_with_a_private_ca(tmp_path: Path) -> None:
    ca, other = trustme.CA(), trustme.CA()
    file = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(file)
    issued = ca.issue_cert("localhost")
    pair = (issued.private_key_pem.bytes(), issued.cert_chain_pems[0].bytes())
    server = grpc.server(futures.ThreadPoolExecutor(2))
    service = Service()
    stubs.add_EmbeddingServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        for tls in (file, str(file), ca.cert_pem.bytes()):
            with Client(f"localhost:{port}", tls=tls, token="secret") as client:
                assert client.embed(b"cat").shape == (SIZE,)
        assert service.metadata[-1]["authorization"] == "Bearer secret"
        untrusted = Client(f"localhost:{port}", tls=other.cert_pem.bytes(), timeout=3)
        with untrusted, pytest.raises(UnavailableError):
            untrusted.embed(b"cat")
    finally:
        server.stop(None).wait()
    with (
        Client("localhost:1", tls="/no/ca.pem") as client,
        pytest.raises(BadOptionError, match=r"/no/ca.pem"),
    ):
        client.embed(b"cat")


@pytest.mark.parametrize("tls", [None, 1, 0, 1.0, ["ca.pem"], object()])
def test_tls_of_another_type_is_refused_when_the_client_is_made(tls: Any) -> None:
    with pytest.raises(BadOptionError, match=r"tls is a .*: give True, False, a file"):
        Client("localhost:1", tls=tls)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no certificate",
        b"\x30\x82\x01\x0a\xff\x00",
        b"-----BEGIN CERTIFICATE-----\nbm9uZQ==\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nbm9uZQ==\n-----END PRIVATE KEY-----\n",
        "a key: ä\ud83d".encode("utf-8", "replace"),
    ],
)
async def test_certificates_that_are_none_are_named(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_bytes(content)
    with pytest.raises(BadOptionError, match="tls holds no CA certificates in PEM"):
        Client("localhost:1", tls=content)
    with (
        Client("localhost:1", tls=file) as client,
        pytest.raises(BadOptionError, match=r"ca\.pem holds no CA"),
    ):
        client.embed(b"cat")
    async with AsyncClient("localhost:1", tls=str(file)) as aclient:
        with pytest.raises(BadOptionError, match=r"ca\.pem holds no CA"):
            await aclient.embed(b"cat")
    with Client("localhost:1", tls="a\0b") as client, pytest.raises(BadOptionError, match="null"):
        client.embed(b"cat")


def test_a_file_of_certificates_may_have_comments(tmp_path: Path) -> None:
    ca = trustme.CA().cert_pem.bytes()
    file = tmp_path / "ca.pem"
    file.write_bytes("# Zürich\n".encode() + ca + b"# and another\n" + ca)
    with Client("localhost:1", tls=file, timeout=5) as client, pytest.raises(UnavailableError):
        client.embed(b"cat")


def test_servers_of_which_none_is_serving_are_not_taken_for_absent() -> None:
    with serving() as one, serving() as two:
        for running in (one, two):
            running.set_serving("NOT_SERVING")
            running.set_serving("NOT_SERVING", "pixvec.v1.EmbeddingService")
        with Client([one.target, two.target], timeout=5) as client:
            for call in (client.models, lambda: client.embed(b"cat")):
                with pytest.raises(
                    UnavailableError, match="is SERVING: they are loading or stopping"
                ) as caught:
                    call()
                assert type(caught.value) is UnavailableError
            assert client.health_state() == "NOT_SERVING"
            assert not client.health()
            with pytest.raises(DeadlineError, match="NOT_SERVING"):
                client.wait_ready(timeout=0.2)
            for service in ("", "pixvec.v1.EmbeddingService"):
                two.set_serving("SERVING", service)
            client.wait_ready(timeout=10)
            assert client.embed(b"cat").shape == (SIZE,)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("localhost:99999", r"target = 'localhost:99999' has port '99999': a port is a number of 1 to 65535"),
        ("localhost:34463999999", "number of 1 to 65535"),
        ("localhost:0", "has port '0'"),
        ("localhost:-1", "has port '-1'"),
        ("localhost:+5", r"has port '\+5'"),
        ("localhost:\uff15", "has port"),
        ("localhost:port", "has port 'port': .*, as in 'localhost:50051'"),
        ("localhost:", "has port ''"),
        ("localhost", "has no port: write 'localhost:50051'"),
        ("dns:///localhost", "has no port"),
        ("dns://8.8.8.8/localhost:99999", "has port '99999'"),
        ("ipv4:10.0.0.1:1,10.0.0.2:99999", "has port '99999'"),
        ("ipv4:localhost:1", "IPv4"),
        ("ipv6:10.0.0.1:1", "IPv6"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("a:1,,b:1", "target = 'a:1,,b:1' has an address that is empty"),
        ("a:1,", "target = 'a:1,' has an address that is empty: remove the comma"),
        (["user:secret@a:1", ""], r"target = '\*\*\*@a:1,' has an address that is empty"),
        ("user:se/secret@host:1", r"target = '\*\*\*@host:1'"),
        ("dns:///user:secret@host:1", r"\*\*\*@host:1"),
        ("http://user:se/secret@host:1", "is a URL: write 'host:1'$"),
        ("vsock:1:2", "is not HOST:PORT"),
        ("passthrough:///h:1", "is a URL: write 'h:1'$"),
        ("[1.2.3.4]:5", r"brackets around IPv4: write '1\.2\.3\.4:5'"),
        ("dns:///[1.2.3.4]", "write '1.2.3.4:50051'"),
        ("ipv4:[1.2.3.4]:5", "write '1.2.3.4:5'"),
        ("[::1]50051", r"is not \[IPV6\]:PORT: write '\[::1\]:50051'"),
        ("[::1", r"write '\[::1\]:50051'"),
        ("[::1]]:1", r"write '\[::1\]:50051'"),
        (":50051", "has no host"),
        ("::1", r"brackets: write '\[::1\]:50051'"),
        ("::1:50051", r"brackets: write '\[::1\]:50051'"),
        ("[::1]", "has no port"),
        ("[localhost]:1", "is not HOST:PORT"),
        ("http://host:50051", "is a URL: write 'host:50051'$"),
        ("https://host/path", "is a URL: write 'host:PORT' and tls=True"),
        ("grpc://host:1", "is a URL: write 'host:1'"),
        ("tcp://10.0.0.1:50051", "is a URL: write '10.0.0.1:50051'"),
        ("host name:1", "is not HOST:PORT"),
        ("host:1/path", "has port '1/path'"),
        ("user:secret@host:1", r"target = '\*\*\*@host:1' is not HOST:PORT"),
        ("http://user:secret@host:1", r"target = 'http://\*\*\*@host:1' is a URL: write 'host:1'"),
        ("h\u00f6st:1", "is not HOST:PORT"),
        ("unix:", "socket path of 0 bytes"),
        ("unix:/" + "a" * 107, "socket path of 108 bytes"),
        (["localhost:1", "dns:///localhost:1"], "without a scheme"),
        (["localhost:1", 3], "target = 3 is not a str"),
        ([], "is empty"),
        (None, "target = None is not a str"),
        (50051, "target = 50051 is not a str"),
        (b"localhost:1", "is not a str"),
    ],
)
def test_a_target_that_is_no_address_is_refused_when_the_client_is_made(
    kind: Any, target: Any, said: str
) -> None:
    with pytest.raises(BadOptionError, match=said) as caught:
        kind(target)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        ("localhost:65535", "localhost:65535"),
        (" pixvec_0.svc.cluster.local:1 ", "pixvec_0.svc.cluster.local:1"),
        ("[fe80::1%eth0]:50051", "[fe80::1%eth0]:50051"),
        ("dns:///pixvec:50051", "dns:///pixvec:50051"),
        ("dns:pixvec:50051", "dns:pixvec:50051"),
        ("ipv6:[::1]:1,[::2]:2", "ipv6:[::1]:1,[::2]:2"),
        ("unix:///run/pixvec.sock", "unix:///run/pixvec.sock"),
        ("unix-abstract:pixvec", "unix-abstract:pixvec"),
        ("xds:///pixvec", "xds:///pixvec"),
        (("a:1", " b:2"), "a:1,b:2"),
    ],
)
def test_a_target_that_is_an_address_is_kept(target: Any, kept: str) -> None:
    assert parse_target(target) == kept


def test_a_socket_in_the_file_system_is_a_target(tmp_path: Path) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(2))
    stubs.add_EmbeddingServiceServicer_to_server(Service(), server)  # type: ignore[no-untyped-call]
    server.add_insecure_port(f"unix:{tmp_path}/pixvec.sock")
    server.start()
    try:
        with Client(f"unix:{tmp_path}/pixvec.sock", token="secret") as client:
            assert client.embed(b"cat").shape == (SIZE,)
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(
    "options",
    [
        {"max_message_bytes": 0},
        {"max_message_bytes": 1 << 31},
        {"max_message_bytes": (1 << 31) - 1},
        {"max_message_bytes": "64"},
        {"url_timeout_s": 0},
        {"url_timeout_s": float("nan")},
        {"url_max_bytes": -1},
    ],
)
def test_a_limit_that_cannot_be_kept_is_refused(options: Any) -> None:
    with pytest.raises(BadOptionError, match=f"{next(iter(options))} = "):
        Client("localhost:1", **options)


def test_the_largest_message_size_is_usable() -> None:
    with Client("127.0.0.1:1", max_message_bytes=(1 << 31) - 1 - (1 << 20), timeout=1) as client:
        assert not client.health()

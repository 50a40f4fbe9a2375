"""Channel options, retries, TLS and where a token may go."""

import json
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from unit.client.fake import SIZE, Service

from pixvec import BadOptionError, Client, UnavailableError
from pixvec._channel import Endpoint, channel_options, is_loopback, resolved, service_config
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
    assert set(others["retryableStatusCodes"]) == {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    assert batches["retryableStatusCodes"] == ["UNAVAILABLE"]
    assert batches["maxAttempts"] == others["maxAttempts"] == 4
    assert config["retryThrottling"] == {"maxTokens": 10, "tokenRatio": 0.1}


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
    "addresses", ["127.0.0.1:1,127.0.0.2", "127.0.0.1:1,", "127.0.0.1:1,[::1]:1", "127.0.0.1:1,no.invalid:1"]
)
def test_addresses_that_are_none_are_named(addresses: str) -> None:
    with pytest.raises(BadOptionError, match="target"):
        resolved(addresses)


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

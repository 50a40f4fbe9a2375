"""How the client talks to a server: channel options, retries, TLS and what goes with every call."""

import json
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

import grpc

from pixvec.v1 import embedding_pb2_grpc as stubs

from ._errors import BadOptionError, ConnectionFailedError
from ._target import host_of, is_loopback, is_several, parse_target

Tls: TypeAlias = bool | str | Path | bytes | grpc.ChannelCredentials
Options: TypeAlias = list[tuple[str, int | str]]

_MOST_KEEPALIVE_S = 86_400.0
# gRPC counts in 32 bits, and keeps this much beside a message for its retries.
_RETRY_SLACK_BYTES = 1 << 20
_MAX_MESSAGE_BYTES = (1 << 31) - 1 - _RETRY_SLACK_BYTES
SERVICE = "pixvec.v1.EmbeddingService"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"


def service_config(*, watches_health: bool = False) -> str:
    """Return the gRPC service config: which failures are tried again, how often, and on which server.

    watches_health: send calls only to servers whose health is SERVING. A server that stops says otherwise
        before it ends its connections, so that no call fails.
    """
    retry = {
        "maxAttempts": 4,
        "initialBackoff": "0.05s",
        "maxBackoff": "1s",
        "backoffMultiplier": 2,
        # A server that stops may answer CANCELLED to calls that wait in gRPC's core. A caller's own
        # cancellation ends the call on this side and is never tried again.
        "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED"],
    }
    # A run through many images must see refusals itself: they tell how many requests the server can bear.
    seen = retry | {"retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"]}
    config: dict[str, object] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {"name": [{"service": SERVICE, "method": "EmbedBatch"}], "retryPolicy": seen},
            {"name": [{"service": SERVICE}], "retryPolicy": retry},
        ],
        # Ten failures in a row end all retries until calls succeed again: 1.06 x the calls, not 4 x.
        "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
    }
    if watches_health:
        # "" is the whole server: a proxy's health service need not know ours by name.
        config["healthCheckConfig"] = {"serviceName": ""}
    return json.dumps(config)


def channel_options(max_message_bytes: int, keepalive_s: float, *, watches_health: bool = False) -> Options:
    """Return the options of every channel; messages of up to `max_message_bytes` each way.

    A connection on which nothing came for `keepalive_s` is asked whether it lives, and given up when nothing
    comes within a third of that: a peer that vanished without a word would hold calls until their deadline.
    """
    return [
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # At its default of 256 KiB a larger request is silently never retried.
        ("grpc.per_rpc_retry_buffer_size", max_message_bytes + _RETRY_SLACK_BYTES),
        ("grpc.enable_retries", 1),
        ("grpc.service_config", service_config(watches_health=watches_health)),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.keepalive_time_ms", round(keepalive_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(keepalive_s * 1000 / 3)),
        # gRPC's own ping, to measure the link, may be on its way when the peer vanishes; keepalive then waits
        # for that one, a minute by default.
        ("grpc.http2.ping_timeout_ms", round(keepalive_s * 1000 / 3)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.dns_min_time_between_resolutions_ms", 10_000),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address and how to reach it. Raises BadOptionError for what must not or cannot be used.

    target: a gRPC target; or addresses, with commas between them or in a sequence, over which calls are
        spread in turn. It is kept as one string.
    """

    target: str
    tls: Tls = False
    token: str | None = field(default=None, repr=False)
    allow_insecure_token: bool = False
    max_message_bytes: int = 64 << 20
    keepalive_s: float = 30.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", parse_target(self.target))
        _check_tls(self.tls)
        _check_bytes(self.max_message_bytes)
        if not isinstance(self.keepalive_s, int | float) or not 0 < self.keepalive_s < _MOST_KEEPALIVE_S:
            raise BadOptionError(f"keepalive_s = {self.keepalive_s!r}: give seconds, up to a day")
        exposed = self.token is not None and self.tls is False and not is_loopback(self.target)
        if exposed and not self.allow_insecure_token:
            raise BadOptionError(
                f"refused to send a token unencrypted to {self.target}: set tls=True or a CA file, or "
                "allow_insecure_token=True where the network itself is encrypted"
            )

    def open(self) -> Any:  # noqa: ANN401 - grpc ships no types
        """Return a grpc.Channel; it connects when first used."""
        return self._open(grpc.insecure_channel, grpc.secure_channel, self.address())

    def open_aio(self, address: str) -> Any:  # noqa: ANN401 - grpc ships no types
        """Return a grpc.aio.Channel of the running event loop to what `address` returned."""
        return self._open(grpc.aio.insecure_channel, grpc.aio.secure_channel, address)

    @property
    def several(self) -> bool:
        """Whether the target is a list of addresses."""
        return is_several(self.target)

    def address(self) -> str:
        """Return the gRPC target; the names in a list are looked up, which may take long."""
        return resolved(self.target) if self.several else self.target

    def _open(self, insecure: Callable[..., Any], secure: Callable[..., Any], address: str) -> Any:  # noqa: ANN401
        # Of a single server the calls themselves tell more: why it does not answer, and for how long.
        options: Options = channel_options(
            self.max_message_bytes,
            self.keepalive_s,
            watches_health="," in self.target or self.target.startswith("dns:"),
        )
        if self.several:
            # What a certificate is checked against; a list of addresses has no name of its own.
            options.append(("grpc.default_authority", self.target.partition(",")[0]))
        if self.tls is False:
            return insecure(address, options=options)
        return secure(address, credentials(self.tls), options=options)


def resolved(addresses: str) -> str:
    """Return the gRPC target for HOST:PORT,HOST:PORT,…; names are looked up now.

    A name that cannot be looked up is left out: the DNS of a cluster withdraws the name of a replica that is
    not ready. Raises ConnectionFailedError when none is left, BadOptionError when the hosts that are found
    have neither IPv4 nor IPv6 in common.
    """
    found: list[Mapping[str, str]] = []
    failures: list[str] = []
    for address in parse_target(addresses).split(","):
        try:
            found.append(_looked_up(address))
        except OSError as error:
            failures.append(f"{address}: {error.strerror or error}")
    if not found:
        raise ConnectionFailedError(f"no server at {addresses}: {', '.join(failures)}")
    # In the order that the system prefers for the first of them.
    common = next((kind for kind in found[0] if all(kind in one for one in found)), None)
    if common is None:
        raise BadOptionError(f"target {addresses}: some are IPv4 and some are IPv6; use one kind, or dns:///")
    return f"{common}:{','.join(one[common] for one in found)}"


def _looked_up(address: str) -> Mapping[str, str]:
    """Return the first IP:PORT of each kind, "ipv4" and "ipv6", that a HOST:PORT has; raises OSError."""
    port = address.rpartition(":")[2]
    kinds: dict[str, str] = {}
    for family, *_, place in socket.getaddrinfo(host_of(address), int(port), type=socket.SOCK_STREAM):
        if family == socket.AF_INET6:
            kinds.setdefault("ipv6", f"[{place[0]}]:{port}")
        elif family == socket.AF_INET:
            kinds.setdefault("ipv4", f"{place[0]}:{port}")
    return kinds


def credentials(tls: Tls) -> Any:  # noqa: ANN401 - grpc ships no types
    """Return channel credentials: True is the system's roots, str and Path a CA file, bytes its content.

    Raises BadOptionError for a file that cannot be read or holds no certificate.
    """
    if tls is True:
        return grpc.ssl_channel_credentials()
    if isinstance(tls, bytes):
        return grpc.ssl_channel_credentials(root_certificates=tls)
    if isinstance(tls, str | Path):
        try:
            content = Path(tls).read_bytes()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or error
            raise BadOptionError(f"cannot read the CA certificates in {str(tls)!r}: {why}") from error
        _check_certificates(content, f"the file {tls}")
        return grpc.ssl_channel_credentials(root_certificates=content)
    return tls


def _check_tls(tls: object) -> None:
    if not isinstance(tls, bool | str | Path | bytes | grpc.ChannelCredentials):
        raise BadOptionError(
            f"tls is a {type(tls).__name__}: give True, False, a file or the bytes of CA certificates, or "
            "grpc.ChannelCredentials"
        )
    if isinstance(tls, bytes):
        _check_certificates(tls, "tls")


def _check_certificates(content: bytes, name: str) -> None:
    """Raise BadOptionError for what holds no certificates: gRPC would fail later, and not say why."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(
            cadata=content.decode("ascii", "ignore") or "none"
        )
    except ssl.SSLError as error:
        raise BadOptionError(
            f"{name} holds no CA certificates in PEM, which begin with -----BEGIN CERTIFICATE-----: {error}"
        ) from error


def _check_bytes(max_message_bytes: object) -> None:
    whole = isinstance(max_message_bytes, int) and not isinstance(max_message_bytes, bool)
    if not whole or not 0 < cast("int", max_message_bytes) <= _MAX_MESSAGE_BYTES:
        raise BadOptionError(
            f"max_message_bytes = {max_message_bytes!r}: give a whole number of 1 to {_MAX_MESSAGE_BYTES}"
        )


def bind_methods(channel: Any) -> Mapping[str, Any]:  # noqa: ANN401 - grpc ships no types
    """Return the callables of a channel, sync or aio, by the name of the call."""
    stub: Any = stubs.EmbeddingServiceStub(channel)  # type: ignore[no-untyped-call]
    names = ("Embed", "EmbedBatch", "EmbedStream", "Similarity", "ListModels", "GetModel")
    # Without serializers bytes go as they are: the codec writes the two tiny health messages by hand.
    return {name: getattr(stub, name) for name in names} | {"Health": channel.unary_unary(HEALTH_CHECK)}

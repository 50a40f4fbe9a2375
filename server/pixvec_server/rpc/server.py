"""The gRPC server: its options, its port, its health, and how it stops."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection as grpc_reflection

from pixvec.v1 import embedding_pb2 as pb
from pixvec.v1 import embedding_pb2_grpc as pb_grpc
from pixvec_server.errors import ConfigError
from pixvec_server.rpc import oip, reflection
from pixvec_server.rpc.address import check_address
from pixvec_server.rpc.auth import TokenAuth
from pixvec_server.rpc.drain import Drain
from pixvec_server.rpc.health import HealthService
from pixvec_server.rpc.observe import Observer

if TYPE_CHECKING:
    from pathlib import Path

    from pixvec_server.config import ServerSection
    from pixvec_server.metrics import Metrics
    from pixvec_server.rpc.oip import InferenceService
    from pixvec_server.rpc.service import EmbeddingService

SERVICE = pb.DESCRIPTOR.services_by_name["EmbeddingService"].full_name
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
# Room for a message's own framing beside the bytes that a request may hold.
_FRAME = 64 * 1024


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where to listen, the largest message in bytes, and whether other processes of ours share the port."""

    section: ServerSection
    request_bytes: int
    version: str
    shared_port: bool = False


class GrpcServer:
    """Health says NOT_SERVING from the first moment until `set_serving`."""

    def __init__(
        self,
        service: EmbeddingService,
        inference: InferenceService,
        metrics: Metrics,
        options: ServerOptions,
    ) -> None:
        section = options.section
        self._inference = inference
        self._names = (SERVICE, oip.NAME) if section.open_inference else (SERVICE,)
        self._section = section
        self._shared_port = options.shared_port
        auth = TokenAuth(section.token_file)
        self._port: int | None = None
        self._drain = Drain()
        self._observer = Observer(metrics, auth, options.version, service.turn_away, self._drain)
        self._health = HealthService(("", *self._names))
        self._server = grpc.aio.server(interceptors=(self._observer,), options=_channel_options(options))
        pb_grpc.add_EmbeddingServiceServicer_to_server(service, self._server)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if section.open_inference:
            self._server.add_generic_rpc_handlers((inference.handler(),))
        if section.reflection:
            names = (*self._names, health.SERVICE_NAME, grpc_reflection.SERVICE_NAME)
            grpc_reflection.enable_server_reflection(names, self._server, pool=reflection.pool(names))

    async def start(self) -> int:
        """Listen, NOT_SERVING, and return the port. Raises ConfigError when the port cannot be had."""
        await self._set(_NOT_SERVING)
        host = self._section.host
        if not self._shared_port:
            check_address(host, self._section.port)
        address = f"[{host}]:{self._section.port}" if ":" in host else f"{host}:{self._section.port}"
        try:
            port = self._bind(address)
        except RuntimeError as exc:
            raise ConfigError(
                f"cannot listen on {address}: the port is in use or the address is not assigned to this host"
            ) from exc
        await self._server.start()
        self._port = port
        return port

    async def set_serving(self) -> None:
        """Say SERVING, for every service."""
        await self._set(_SERVING)
        self._inference.ready = True

    async def set_not_serving(self) -> None:
        """Say NOT_SERVING until `set_serving`: what answers is gone, and comes back."""
        self._inference.ready = False
        await self._set(_NOT_SERVING)

    async def lame_duck(self, seconds: float) -> None:
        """Say NOT_SERVING for good and keep serving, until load balancers have noticed."""
        self._inference.ready = False
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(seconds)

    async def stop(self, grace: float) -> None:
        """Refuse connections, let accepted calls end for `grace` seconds, then end every connection."""
        self._observer.end_open_streams()
        try:
            if self._port is not None:
                await self._drain.run(self._port, grace)
        finally:
            await self._server.stop(None)

    def _bind(self, address: str) -> int:
        section = self._section
        if section.tls_cert_file is None or section.tls_key_file is None:
            return int(self._server.add_insecure_port(address))
        _check_pair(section.tls_cert_file, section.tls_key_file)
        pair = (section.tls_key_file.read_bytes(), section.tls_cert_file.read_bytes())
        return int(self._server.add_secure_port(address, grpc.ssl_server_credentials([pair])))

    async def _set(self, status: Any) -> None:
        for name in ("", *self._names):
            await self._health.set(name, status)


def _channel_options(options: ServerOptions) -> tuple[tuple[str, int], ...]:
    return (
        ("grpc.max_receive_message_length", options.request_bytes + _FRAME),
        ("grpc.max_send_message_length", -1),
        # Anti-abuse only, far over what admission takes: near it, grpc fails calls with a deadline.
        ("grpc.max_concurrent_streams", 4096),
        # Two servers on one port would share its traffic without a word, unless they are one server's parts.
        ("grpc.so_reuseport", int(options.shared_port)),
        ("grpc.server_handshake_timeout_ms", 5_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # An image comes in one frame and a few reads, without waiting for the window to open.
        ("grpc.http2.lookahead_bytes", 4 << 20),
        ("grpc.http2.max_frame_size", 1 << 20),
        ("grpc.experimental.tcp_read_chunk_size", 256 << 10),
        ("grpc.experimental.tcp_max_read_chunk_size", 4 << 20),
    )


def _check_pair(certificate: Path, key: Path) -> None:
    """Raise ConfigError for what grpc would only call a failure to bind."""
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (ssl.SSLError, OSError) as exc:
        raise ConfigError(
            f"server.tls_cert_file = {certificate}, tls_key_file = {key}: no certificate and its key ({exc})"
        ) from exc

"""The standard health service, grpc.health.v1: Check, Watch and List."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health, health_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence


class HealthService(health.aio.HealthServicer):  # type: ignore[misc] # grpc ships no types
    """grpc's own servicer, which has no List. `names` are the services that List reports, "" the server."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    async def List(  # noqa: N802 - the method's name in the protocol
        self,
        _request: Any,  # noqa: ANN401 - as above
        context: Any,  # noqa: ANN401 - as above
    ) -> Any:  # noqa: ANN401 - as above
        """Return the status of every service, as Check would."""
        statuses = {
            name: await self.Check(health_pb2.HealthCheckRequest(service=name), context)
            for name in self._names
        }
        return health_pb2.HealthListResponse(statuses=statuses)

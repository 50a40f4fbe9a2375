"""EmbedStream: what its messages share, and what is wrong with one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pixvec.v1 import embedding_pb2 as pb
from pixvec_server.errors import BadOptionError, RequestError
from pixvec_server.rpc.flow import Flow
from pixvec_server.rpc.messages import write_result

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

_MAX_ID_BYTES = 256


class Stream:
    """One EmbedStream: its first message's targets serve those that name none, and ids are unique."""

    def __init__(
        self,
        answer: Callable[[pb.EmbedStreamRequest, Sequence[pb.Target]], Awaitable[pb.EmbedStreamResponse]],
        write: Callable[[pb.EmbedStreamResponse], Awaitable[None]],
        window: int,
        draining: asyncio.Event,
    ) -> None:
        self._answer = answer
        self._flow = Flow(self._answer_one, write, window, draining)
        self._open_ids: set[str] = set()
        self._first: Sequence[pb.Target] | None = None

    async def serve(self, requests: AsyncIterator[pb.EmbedStreamRequest]) -> None:
        """Answer every message. Raises DrainingError when the server stops, after what was read."""
        await self._flow.serve(requests)

    async def _answer_one(self, request: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse:
        if self._first is None:
            # A copy: the message itself, images and all, would live as long as the stream.
            self._first = pb.EmbedStreamRequest(targets=request.targets).targets
        refused = self._refuse(request)
        if refused is not None:
            return refused
        self._open_ids.add(request.id)
        try:
            return await self._answer(request, self._first)
        finally:
            self._open_ids.discard(request.id)

    def _refuse(self, request: pb.EmbedStreamRequest) -> pb.EmbedStreamResponse | None:
        if len(request.id.encode()) > _MAX_ID_BYTES:
            error = BadOptionError(f"the id is over {_MAX_ID_BYTES} bytes", field="id")
        elif request.id in self._open_ids:
            error = BadOptionError(
                f"id {request.id!r} is still unanswered: give each message its own", field="id"
            )
        else:
            return None
        return refuse(request, error)


def refuse(request: pb.EmbedStreamRequest, error: RequestError) -> pb.EmbedStreamResponse:
    """Answer a message as a whole with one error, for each of its inputs."""
    results = [write_result(error)] * max(1, len(request.inputs))
    return pb.EmbedStreamResponse(id=request.id, results=results)

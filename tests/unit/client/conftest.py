from collections.abc import AsyncIterator, Iterator

import pytest
from unit.client.fake import Running, serving

from pixvec import AsyncClient, Client


@pytest.fixture
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    with Client(server.target, timeout=10) as made:
        yield made


@pytest.fixture
async def aclient(server: Running) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.target, timeout=10) as made:
        yield made

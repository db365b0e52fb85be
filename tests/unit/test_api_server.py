"""The API's process, as far as it comes without a database."""

import asyncio
import resource
import socket

import pytest
import uvicorn
from starlette.applications import Starlette

from api.errors import ApiError
from api.server import CONNECTIONS, OTHER_FILES, HttpServer, serve
from runtime.settings import ApiSettings, read_settings
from views.user_information import user_information


@pytest.fixture
def server_that_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make uvicorn end as soon as it serves, by an error of its own."""

    async def main_loop(_server: uvicorn.Server) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(uvicorn.Server, "main_loop", main_loop)
    monkeypatch.setenv("VIEWKEEPER_VIEW_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("VIEWKEEPER_API_PORT", "0")


@pytest.mark.usefixtures("server_that_ends")
def test_a_server_that_ends_by_itself_ends_the_process_and_says_why() -> None:
    with pytest.raises(ApiError, match="no more") as raised:
        serve(read_settings(ApiSettings), [user_information])
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.usefixtures("server_that_ends")
def test_the_soft_limit_of_open_files_is_raised_as_far_as_the_connections_need() -> None:
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + OTHER_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(ApiError):
            serve(read_settings(ApiSettings), [user_information])
        raised, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))

    assert raised == (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))


@pytest.mark.parametrize(
    "writes",
    [[b""], [b"GET / HTTP/1.1\r\nHost: "], [b"GET / HTTP/1.1\r\nContent-Length: 2\r\n\r\n", b"x"]],
    ids=["nothing", "half a head", "half a body"],
)
def test_a_connection_of_which_nothing_more_comes_is_closed(writes: list[bytes]) -> None:
    """Its client may have vanished without a word, and would keep its place for ever."""

    async def until_closed() -> None:
        server = HttpServer(Starlette(), keep_alive_seconds=1)
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        reader, writer = await asyncio.open_connection(*address)
        for write in writes:
            writer.write(write)
            if write is not writes[-1]:
                await reader.readexactly(1)
        async with asyncio.timeout(10):
            await reader.read()
        writer.close()
        server.should_exit = True
        await serving

    asyncio.run(until_closed())

"""The API's process, as far as it comes without a database."""

import resource

import granian.net
import pytest

from api.errors import ApiError
from api.server import CONNECTIONS, OTHER_FILES, serve
from runtime.settings import ApiSettings, read_settings
from views.user_information import user_information


@pytest.fixture(autouse=True)
def other_granian(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand for a release of granian that makes its sockets in another way: serving fails at once."""

    def taking_nothing() -> None:
        pass

    monkeypatch.setattr(granian.net, "SocketHolder", taking_nothing)
    monkeypatch.setenv("VIEWKEEPER_VIEW_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("VIEWKEEPER_API_PORT", "0")


def test_a_server_that_ends_by_itself_ends_the_process_and_says_why() -> None:
    with pytest.raises(ApiError, match="takes 0 positional arguments but 3 were given") as raised:
        serve(read_settings(ApiSettings), [user_information])
    assert isinstance(raised.value.__cause__, TypeError)


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

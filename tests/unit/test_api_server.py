"""The API's process, as far as it comes without a database."""

import granian.net
import pytest

from api.errors import ApiError
from api.server import serve
from runtime.settings import ApiSettings, read_settings
from views.user_information import user_information


def test_a_server_that_ends_by_itself_ends_the_process_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIEWKEEPER_VIEW_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("VIEWKEEPER_API_PORT", "0")

    def taking_nothing() -> None:
        """Stand for a release of granian that makes its sockets in another way."""

    monkeypatch.setattr(granian.net, "SocketHolder", taking_nothing)

    with pytest.raises(ApiError, match="takes 0 positional arguments but 3 were given") as raised:
        serve(read_settings(ApiSettings), [user_information])
    assert isinstance(raised.value.__cause__, TypeError)

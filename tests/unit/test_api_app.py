import asyncio
import dataclasses

import httpx
import pytest

from api.app import OWN_PATHS, application
from api.sampling import Sampler
from api.store import PostgresStore
from projector.definition import Resource, View
from projector.errors import DefinitionError
from views.user_information import user_information

UNUSED_URL = "postgresql://nobody@127.0.0.1:1/nothing"


def request(method: str, path: str, *, views: tuple[View, ...] = (user_information,)) -> httpx.Response:
    """Send a request to an application whose store has not connected yet."""
    store = PostgresStore(UNUSED_URL, views, queue_requests=10)

    def ready() -> tuple[bool, str]:
        raise ArithmeticError("a mistake in the program")

    app = application(views, store, Sampler(UNUSED_URL, None, views), ready=ready, min_as_of_seconds=1)

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://api") as client:
            return await client.request(method, path)

    return asyncio.run(send())


def test_a_mistake_in_the_program_is_a_problem_and_a_log_line(capsys: pytest.CaptureFixture[str]) -> None:
    reply = request("GET", "/readyz")

    assert reply.status_code == 500
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["title"] == "Internal Server Error"
    logged = "".join(capsys.readouterr())
    assert "request_failed" in logged
    assert "a mistake in the program" in logged


def test_without_its_store_a_resource_is_unavailable() -> None:
    reply = request("GET", "/users/1")

    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert reply.headers["content-type"] == "application/problem+json"


def test_a_path_that_nobody_serves_is_a_problem() -> None:
    reply = request("GET", "/nobody?x=1")

    assert reply.status_code == 404
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json() == {
        "type": "about:blank",
        "title": "Not Found",
        "status": 404,
        "detail": "nothing is served here; served are /users/{userId}",
        "instance": "/nobody",
    }


@pytest.mark.parametrize("path", ["/users", "/users/", "/users/1/", "/users/1/x", "/x/users/1", "//users/1", "/"])
def test_only_the_whole_path_is_the_resource(path: str) -> None:
    assert request("GET", f"http://api{path}").status_code == 404


@pytest.mark.parametrize("path", ["/users/1", *OWN_PATHS])
def test_another_method_is_refused_with_those_that_are_allowed(path: str) -> None:
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        reply = request(method, path)

        assert reply.status_code == 405
        assert sorted(reply.headers["allow"].split(", ")) == ["GET", "HEAD"]
        assert reply.headers["content-type"] == "application/problem+json"


def served_at(path: str, *, name: str) -> View:
    fields = user_information.resource.fields
    return dataclasses.replace(user_information, name=name, resource=Resource(path, fields))


@pytest.mark.parametrize(
    ("one", "other"),
    [("/users/{userId}", "/users/{id}"), ("/users/{id}/all", "/users/all/{id}"), ("/all/{id}", "/all/{id}")],
)
def test_two_views_at_one_path_are_refused(one: str, other: str) -> None:
    with pytest.raises(DefinitionError, match=f"'one' and 'other' are both served at {one}, which may be {other};"):
        request("GET", "/", views=(served_at(one, name="one"), served_at(other, name="other")))


def test_a_view_at_a_path_of_the_apis_own_is_refused() -> None:
    refusal = "'one' is served at /live/{id}, which may be /live/figures, where the API itself answers; give it another"
    with pytest.raises(DefinitionError, match=refusal):
        request("GET", "/", views=(served_at("/live/{id}", name="one"),))


@pytest.mark.parametrize("path", ["/users/{id}/all", "/user/{id}", "/all/users/{id}"])
def test_views_at_paths_of_their_own_are_both_served(path: str) -> None:
    views = (user_information, served_at(path, name="other"))
    assert request("GET", "/users/1", views=views).status_code == 503
    assert request("GET", path.replace("{id}", "1"), views=views).status_code == 503

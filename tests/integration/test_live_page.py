"""The page at /live, in a real browser, beside the pipeline as the processes that it is."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import httpx
import psycopg
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Locator, Page, expect

from api.view_look import NAME
from compose.local.postgres import PostgresServer
from compose.local.process import free_port
from tests.browser import open_browser
from tests.daemons import Daemon, Daemons
from tests.event_stream import event_stream
from tests.integration.captured_source import Source, insert_tweets
from tests.integration.test_api import TABLE, ZCOX, api, client_of, execute, insert_user
from tests.integration.view_topic import ViewTopic
from tests.waiting import wait_until

__all__ = ["api"]

PATIENCE_MS = 40_000
WELL = "All is well"
DRAWN_SECONDS = 300
"""As many are drawn from left to right, and each is as wide as a unit of the drawing."""
WIDTHS = (320, 375, 1280)
HANDLED = re.compile(r"Failed to load resource: the server responded with a status of (404|406) ")
"""A browser notes each such reply by itself: that there is no such row, that there are no streams."""
HOSTILE = {
    "username": "<img src=x onerror=alert(1)>",
    "name": "</script><script>alert(2)</script>\"'&amp;",
    "description": "long " * 2_000,
    "location": "\u202e\u05e9\u05dc\u05d5\u05dd\u2066 \u0645\u0631\u062d\u0628\u0627",
    "web_page_url": "javascript:alert(3)//" + "w" * 400,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Give one browser for all tests here."""
    with open_browser() as browser:
        yield browser


@dataclass
class Shown:
    """A page, and what its browser has asked for and complained of."""

    page: Page
    base_url: str
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> Locator:
        return self.page.locator("#verdict")

    @property
    def troubles(self) -> Locator:
        return self.page.locator("#troubles")

    def value(self, name: str) -> Locator:
        """Find the value of a field of the row that is shown."""
        return self.page.locator(f"#fields div[data-name={name}] dd")

    def note(self, message: ConsoleMessage) -> None:
        """Take a complaint down."""
        if message.type in ("error", "warning") and not HANDLED.match(message.text):
            self.complaints.append(message.text)

    def assert_quiet(self) -> None:
        """Nothing was asked of anybody but the API, and the browser complained of nothing."""
        assert self.requests
        assert [url for url in self.requests if not url.startswith((f"{self.base_url}/", "data:"))] == []
        assert self.complaints == []


@contextmanager
def shown(
    browser: Browser,
    daemon: Daemon,
    place: str = "/live",
    *,
    width: int = 1280,
    scheme: str = "light",
    script: bool = True,
) -> Iterator[Shown]:
    """Open a page of a ready API."""
    with client_of(daemon) as client:
        base_url = str(client.base_url).rstrip("/")
    context = browser.new_context(
        viewport={"width": width, "height": 800}, color_scheme="dark" if scheme == "dark" else "light",
        java_script_enabled=script,
    )  # fmt: skip
    context.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    page = Shown(context.new_page(), base_url)
    page.page.on("request", lambda request: page.requests.append(request.url))
    page.page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.page.on("console", page.note)
    try:
        page.page.goto(base_url + place)
        yield page
    finally:
        context.close()


def number_of(figure: Locator) -> float:
    found = re.match(r"[\d.,]+", figure.inner_text())
    return float(found[0].replace(",", "")) if found else 0.0


def drawn_seconds(page: Page) -> float:
    """Return how long ago the first point of freshness is that is drawn."""
    line = page.locator("#charts svg[role=img]").nth(1).locator("path.blue").last.get_attribute("d") or ""
    first_point = re.match(r"M([\d.]+) ", line)
    assert first_point, line
    return DRAWN_SECONDS - float(first_point[1])


@pytest.fixture
def pipeline(source: Source, daemon: Daemons) -> dict[str, Daemon]:
    """Run the pipeline on a source with one user; the daemons by their parts."""
    source.attach("users", "tweets", "follows", "likes")
    source.run("INSERT INTO users (user_id, username) VALUES (12542832, 'zcox')")
    daemons = {part: daemon(part, "run") for part in ("cdc", "projector", "api")}
    with client_of(daemons["api"]) as client:
        wait_until(lambda: client.get("/users/12542832").status_code == 200, what="the user")
    return daemons


def test_a_user_and_the_figures_move_while_the_source_changes(
    browser: Browser, pipeline: dict[str, Daemon], source: Source
) -> None:
    with shown(browser, pipeline["api"]) as live:
        expect(live.verdict).to_have_text(WELL)
        # By keyboard alone, from the top of the page.
        live.page.keyboard.press("Tab")
        expect(live.page.get_by_label("userId")).to_be_focused()
        live.page.keyboard.type("12542832")
        live.page.keyboard.press("Enter")
        expect(live.value("username")).to_have_text("zcox")
        expect(live.value("tweetCount")).to_have_text("0")
        assert live.page.url.endswith("/live#userId=12542832")

        source.run("INSERT INTO tweets VALUES (1, 12542832, 'first', now()), (2, 12542832, 'second', now())")
        expect(live.value("tweetCount")).to_have_text("2")
        expect(live.page.locator("#fields div.changed dt")).to_have_text(["tweetCount"])
        expect(live.page.locator("#seen li").first).to_contain_text("tweetCount 0 → 2")
        expect(live.page.locator("#since")).to_contain_text("1 change so far; as of ")
        expect(live.page.locator("#aloud")).to_have_text("tweetCount is now 2")

        applied = live.page.locator("#charts figure").first.locator(".figure")
        tweets = iter(range(10, 100_000))

        def is_applied() -> bool:
            source.run(insert_tweets(first := next(tweets), first))
            return number_of(applied) > 0

        wait_until(is_applied, what="records applied a second")
        chart = live.page.locator("#charts svg[role=img]").first
        expect(chart).to_have_attribute(
            "aria-label", re.compile(r"Records applied a second: now [\d.]+, at most [\d.]+ ")
        )
        assert live.page.locator("#charts figure").first.locator("path").count() == 2
        expect(live.page.locator("#stage-capture")).to_contain_text(
            re.compile(r"\d+(\.\d)? m?s.*4 tables, complete", re.S)
        )
        expect(live.page.locator("#stage-view")).to_contain_text(re.compile(r"\d+(\.\d)? m?s.*records behind", re.S))
        expect(live.page.locator("#stage-reads")).to_contain_text(re.compile(r"ms.*p95, [1-9]", re.S))

        source.run("DELETE FROM users WHERE user_id = 12542832")
        expect(live.page.locator("#seen li").first).to_contain_text("the row there → gone")
        live.assert_quiet()

        # Whoever opens the address sees the same user, and what was drawn before the page was opened.
        source.run("INSERT INTO users (user_id, username) VALUES (12542832, 'again')")
        wait_until(lambda: drawn_seconds(live.page) > 5, what="five seconds to be drawn")
        opened_at = time.monotonic()
        with shown(browser, pipeline["api"], "/live#userId=12542832") as second:
            expect(second.value("username")).to_have_text("again")
            expect(second.verdict).to_have_text(WELL)
            assert drawn_seconds(second.page) - (time.monotonic() - opened_at) > 4
            second.assert_quiet()


def test_a_row_is_followed_as_a_live_stream_where_the_view_is_a_topic(
    browser: Browser, pipeline: dict[str, Daemon], source: Source, view_topic: ViewTopic, daemon: Daemons
) -> None:
    with shown(browser, pipeline["api"], "/live#userId=12542832") as live:
        expect(live.page.locator("#told")).to_contain_text(
            "Asked for each second, since there are no streams of user_information: "
            "public.user_information is attached to no capture"
        )
        expect(live.value("tweetCount")).to_have_text("0")
        view_topic.attach(daemon)
        view_topic.run(daemon)
        expect(live.page.locator("#told")).to_have_text("Followed as a live stream.")
        source.run("INSERT INTO tweets VALUES (1, 12542832, 'first', now())")
        expect(live.value("tweetCount")).to_have_text("1")
        expect(live.page.locator("#stage-topic")).to_contain_text(re.compile(r"\d+(\.\d)? m?s"))
        source.run("DELETE FROM users WHERE user_id = 12542832")
        expect(live.page.locator("#seen li").first).to_contain_text("the row there → gone")
        live.assert_quiet()


@pytest.mark.usefixtures("pipeline")
def test_a_row_is_shown_where_no_more_streams_may_be_open_and_followed_once_one_may(
    browser: Browser, view_topic: ViewTopic, daemon: Daemons
) -> None:
    view_topic.attach(daemon)
    crowded = daemon("api", "run", settings={"VIEWKEEPER_API_STREAMS": "1"})
    with client_of(crowded), event_stream(crowded.health_port, "/users/1") as other:
        assert other.next_of("gone").id == "gone"
        with shown(browser, crowded, "/live#userId=12542832") as live:
            expect(live.value("tweetCount")).to_have_text("0")
            told = live.page.locator("#told")
            expect(told).to_have_text("Asked for each second, since 1 streams are open already.")
            other.close()
            expect(told).to_have_text("Followed as a live stream.")


def test_what_stands_still_is_named_with_where_to_look(
    browser: Browser, pipeline: dict[str, Daemon], source: Source
) -> None:
    with shown(browser, pipeline["api"]) as live:
        expect(live.verdict).to_have_text(WELL)
        pipeline["projector"].signal(signal.SIGSTOP)
        source.run(insert_tweets(1, 1))
        expect(live.page.locator("#stage-view")).to_contain_text("1 record behind")
        source.run(insert_tweets(2, 50))
        expect(live.troubles).to_contain_text(
            re.compile(r"The projector is \d+ records behind, and none was applied for .*viewkeeper-projector run up\?")
        )
        expect(live.verdict).to_have_text("1 thing to look at")
        expect(live.page.locator("#stage-view")).to_contain_text(re.compile(r"[1-9]\d* records behind"))
        pipeline["projector"].signal(signal.SIGCONT)
        expect(live.verdict).to_have_text(WELL)

        pipeline["cdc"].signal(signal.SIGSTOP)
        expect(live.troubles).to_contain_text(
            re.compile(r"Capture viewkeeper has said nothing for \d.* s.*is viewkeeper-cdc run up\?")
        )
        expect(live.page.locator("#stage-capture")).to_contain_text("says nothing")
        pipeline["cdc"].signal(signal.SIGCONT)
        expect(live.verdict).to_have_text(WELL)

        pipeline["api"].signal(signal.SIGSTOP)
        pipeline["api"].kill()
        expect(live.troubles).to_contain_text("The API does not answer")


def test_what_a_row_holds_is_shown_as_text_at_every_width(browser: Browser, api: Daemons, view_url: str) -> None:
    insert_user(view_url, 7, **HOSTILE)
    with shown(browser, api("api", "run"), "/live#userId=7") as live:
        expect(live.value("username")).to_have_text(HOSTILE["username"])
        for name, column in (("name", "name"), ("location", "location"), ("webPageUrl", "web_page_url")):
            assert live.value(name).inner_text() == HOSTILE[column]
        assert live.value("description").text_content() == HOSTILE["description"]
        assert live.value("joinedDate").inner_text() == "null"
        execute(view_url, f"UPDATE {TABLE} SET name = %s, location = NULL", HOSTILE["username"])
        changes = live.page.locator("#seen li")
        expect(changes.filter(has_text="name")).to_contain_text(f"{HOSTILE['name']} → {HOSTILE['username']}")
        expect(changes.filter(has_text="location")).to_contain_text("→ null")
        assert live.page.locator("main img, main a, main script").count() == 0
        for width in WIDTHS:
            live.page.set_viewport_size({"width": width, "height": 800})
            assert live.page.evaluate("document.documentElement.scrollWidth") == width
        live.assert_quiet()


def test_it_is_dark_where_that_is_preferred_and_readable_in_both(browser: Browser, api: Daemons, view_url: str) -> None:
    execute(view_url, ZCOX)
    execute(view_url, "UPDATE projector.as_of SET as_of = now() + interval '1 hour'")
    daemon = api("api", "run")
    grounds = {}
    for scheme in ("light", "dark"):
        with shown(browser, daemon, "/live#userId=12542832", scheme=scheme) as live:
            expect(live.value("username")).to_have_text("zcox")
            expect(live.verdict).to_have_text("All is well, as far as is known here")
            grounds[scheme] = _luminance(_colour(live.page.locator("body"), "backgroundColor"))
            for words in ("#verdict", "#fields dt", "#fields dd", "#told", "button", "#troubles strong", ".axis span"):
                contrast = _contrast(live.page.locator(words).first)
                assert contrast >= 4.5, f"{words}, {scheme}: {contrast:.1f}"
            live.assert_quiet()
    assert grounds["light"] > 0.8
    assert grounds["dark"] < 0.05


def test_without_a_script_it_says_where_the_figures_are(browser: Browser, api: Daemons) -> None:
    with shown(browser, api("api", "run"), script=False) as live:
        expect(live.page.locator("noscript p")).to_contain_text("The same is at /live/figures")
        expect(live.page.locator("noscript p")).to_be_visible()


def test_the_page_is_one_file_that_may_load_nothing(api: Daemons) -> None:
    with client_of(api("api", "run")) as client:
        page = client.get("/live")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
        assert (policy["default-src"], policy["connect-src"]) == ("'none'", "'self'")
        assert all(policy[kind].startswith("'sha256-") for kind in ("script-src", "style-src"))
        assert page.headers["cache-control"] == "no-cache"
        again = client.get("/live", headers={"If-None-Match": page.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        head = client.head("/live")
        assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", page.headers["etag"])
        assert client.get("/live/figures", params={"after": "then"}).status_code == 400
        assert client.get("/live/figures").headers["cache-control"] == "no-store"


def test_nothing_is_sampled_before_somebody_asks(api: Daemons, view_url: str) -> None:
    def sessions() -> int:
        with psycopg.connect(view_url) as connection:
            found = connection.execute(
                "SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = %s", [NAME]
            )
            return found.rowcount

    with client_of(api("api", "run")) as client:
        assert client.get("/live").status_code == 200
        assert sessions() == 0
        assert client.get("/live/figures").json()["samples"] == []
        wait_until(lambda: len(client.get("/live/figures").json()["samples"]) >= 2, what="two samples")
        assert sessions() == 1
        samples = client.get("/live/figures").json()["samples"]
        newer = client.get("/live/figures", params={"after": samples[0]["at_ms"]}).json()["samples"]
        assert newer[: len(samples) - 1] == samples[1:]


def troubles_of(client: httpx.Client) -> dict[str, str]:
    """Return what is wrong, each with where to look."""
    (view,) = client.get("/live/figures").json()["views"]
    return {trouble["what"]: trouble["look_at"] for trouble in view["troubles"]}


def test_what_the_role_may_not_read_is_named_with_the_grant(
    api: Daemons, view_url: str, postgres: PostgresServer
) -> None:
    role = f"reader_{uuid4().hex[:8]}"
    execute(view_url, f"CREATE ROLE {role} LOGIN")
    try:
        execute(view_url, f"GRANT SELECT ON public.user_information, public.viewkeeper_as_of TO {role}")
        execute(view_url, ZCOX)
        execute(view_url, "UPDATE projector.as_of SET as_of = now()")
        database = view_url.rpartition("/")[2]
        url = postgres.url(database).replace("postgres@", f"{role}@")
        with client_of(api("api", "run", settings={"VIEWKEEPER_VIEW_URL": url})) as client:
            what = (
                f"The API's role {role} may not read projector.partition_offset, projector.dead_letter, "
                "so that lag and changes are not known"
            )
            wait_until(lambda: what in troubles_of(client), what="the words about the role")
            grant = troubles_of(client)[what].removeprefix("the role's rights: ")
            assert grant.startswith("GRANT USAGE ON SCHEMA projector, GRANT SELECT ON ")
            (view,) = client.get("/live/figures").json()["views"]
            assert view["now"]["freshness_seconds"] < 60
            assert view["now"]["lag_records"] is None
            assert client.get("/users/12542832").status_code == 200
            # What it says is enough.
            for statement in grant.removesuffix(f" TO {role}").split(", GRANT "):
                execute(view_url, f"GRANT {statement.removeprefix('GRANT ')} TO {role}")
            wait_until(lambda: what not in troubles_of(client), what="the end of these words")
    finally:
        execute(view_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_a_database_or_a_broker_that_is_away_is_named(api: Daemons, view_url: str, postgres: PostgresServer) -> None:
    execute(view_url, "UPDATE projector.as_of SET as_of = now()")
    database = view_url.rpartition("/")[2]
    nobody = {"VIEWKEEPER_KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}"}

    def has(client: httpx.Client, words: str) -> bool:
        return any(what.startswith(words) for what in troubles_of(client))

    with client_of(api("api", "run", settings=nobody)) as client:
        wait_until(lambda: has(client, "The cursor topic cannot be read: Kafka 127.0.0.1:"), what="words about Kafka")
        assert not has(client, "The view database")
        with psycopg.connect(postgres.url(), autocommit=True) as session:
            session.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS false".encode())
            session.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])
            wait_until(lambda: has(client, "The view database cannot be looked at: "), what="words about the database")
            session.execute(f"ALTER DATABASE {database} ALLOW_CONNECTIONS true".encode())
        wait_until(lambda: not has(client, "The view database"), what="the end of these words")


def _colour(element: Locator, property_name: str) -> list[float]:
    text = element.evaluate("(one, name) => getComputedStyle(one)[name]", property_name)
    return [float(part) for part in re.findall(r"[\d.]+", text)]


def _contrast(element: Locator) -> float:
    """Return the contrast of an element's text with what is behind it, as WCAG defines it."""
    behind = element.evaluate(
        """one => {
            for (; one; one = one.parentElement) {
                const colour = getComputedStyle(one).backgroundColor;
                if (!colour.endsWith(", 0)")) return colour;
            }
        }"""
    )
    ground = _luminance([float(part) for part in re.findall(r"[\d.]+", behind)])
    darker, lighter = sorted((ground, _luminance(_colour(element, "color"))))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: list[float]) -> float:
    red, green, blue = (
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour[:3]
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue

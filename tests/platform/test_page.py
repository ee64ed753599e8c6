"""The live page's own port: who is let in, what the stream tells, what a model's package shows, a request sent."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from mme.platform.page import events
from mme.platform.page.app import Page
from mme.platform.page.events import Recorder
from mme.platform.state import State

pytestmark = pytest.mark.anyio


class Browser:
    """A client with the page's cookie, that reads the stream of events."""

    def __init__(self, page: Page, session: aiohttp.ClientSession) -> None:
        self.url = page.url.partition("?")[0].rstrip("/")
        self.page = page
        self.session = session
        self.tiles: dict[str, dict[str, Any]] = {}
        self.log: list[str] = []

    async def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        async with self.session.get(self.url + path, headers=headers) as response:
            return (
                response.status,
                {name.lower(): value for name, value in response.headers.items()},
                await response.text(),
            )

    async def send(self, described: Any, **headers: str) -> tuple[int, Any]:
        headers = {"Origin": self.url, "Content-Type": "application/json"} | headers
        async with self.session.post(self.url + "/invoke", data=json.dumps(described), headers=headers) as response:
            return response.status, await response.json()

    async def read(self, response: aiohttp.ClientResponse) -> dict[str, Any]:
        """The next event, taken into what is known."""
        while not (line := await response.content.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
        told: dict[str, Any] = json.loads(line[6:])
        for changes in told.get("tiles", {}).values():
            self.tiles |= changes
        self.log += [entry["text"] for entry in told.get("log", ())]
        return told


async def started(rig: Any, recorder: Recorder) -> Page:
    """The page, as the next start of the same home has it."""
    with contextlib.closing(State(rig.config.home)) as state:
        page = Page(rig.hosting, rig.runtime, recorder, state, "secret of the home")
        await page.start()
    return page


@contextlib.asynccontextmanager
async def looking(rig: Any, plan: Any = None, **options: Any) -> AsyncIterator[Browser]:
    """The endpoint `shop`, and a browser that has come in."""
    recorder = Recorder()
    async with rig.up(plan, watch=recorder, **options):
        page = await started(rig, recorder)
        jar = aiohttp.CookieJar(unsafe=True)  # addresses are hosts too
        try:
            async with aiohttp.ClientSession(cookie_jar=jar) as session:
                browser = Browser(page, session)
                async with session.get(page.url) as response:
                    assert response.status == 200
                yield browser
        finally:
            await page.close()


def request(target: str, body: str = "{}") -> dict[str, str]:
    types = {"content_type": "application/json", "accept": "application/json"}
    return {"endpoint": "shop", "variant": "AllTraffic", "target": target, "body": body, **types}


async def test_the_page_is_for_who_has_its_key(rig: Any) -> None:
    async with looking(rig) as browser, aiohttp.ClientSession() as stranger:
        for path in ("/", "/events", "/static/page.js", "/model"):
            async with stranger.get(browser.url + path) as response:
                assert response.status == 403
                assert "mme open" in (await response.json())["message"]
        async with stranger.get(browser.url + "/?key=another") as response:
            assert response.status == 403
        async with stranger.get(browser.page.url, allow_redirects=False) as response:
            assert response.status == 303 and response.headers["Location"] == "/"
            assert response.headers["Set-Cookie"].endswith("; Path=/; HttpOnly; SameSite=Strict")


async def test_a_page_under_another_hosts_name_is_refused(rig: Any) -> None:
    async with looking(rig) as browser:
        port = browser.url.rpartition(":")[2]
        assert (await browser.get("/", Host=f"localhost:{port}"))[0] == 200
        for host in (f"evil.example:{port}", "127.0.0.1", "127.0.0.1:1", f"127.0.0.1.evil.example:{port}"):
            status, _, body = await browser.get("/", Host=host)
            assert status == 403 and host in json.loads(body)["message"]


async def test_every_answer_says_that_nothing_from_elsewhere_may_run_or_be_shown(rig: Any) -> None:
    async with looking(rig) as browser:
        for path in ("/", "/static/page.js", "/static/uplot/uPlot.min.css", "/static/icon.svg", "/nothing"):
            _, headers, _ = await browser.get(path)
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
            assert "unsafe" not in policy and "http" not in policy
            assert headers["x-content-type-options"] == "nosniff"
            assert not any(name.lower().startswith("access-control") for name in headers)


async def test_only_the_pages_own_files_are_handed_out(rig: Any) -> None:
    async with looking(rig) as browser:
        for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static//etc/passwd", "/static/uplot/LICENSE"):
            assert (await browser.get(path))[0] == 404


ORIGINS = {"another": "http://evil.example", "none": "null", "another port": "http://127.0.0.1", "empty": ""}


@pytest.mark.parametrize("origin", ORIGINS.values(), ids=ORIGINS)
async def test_a_request_is_sent_only_for_the_page_itself(rig: Any, origin: str) -> None:
    rig.put("a.tar.gz")
    async with looking(rig) as browser:
        assert (await browser.send(request("a.tar.gz"), Origin=origin))[0] == 403
        assert (await browser.send(request("a.tar.gz"), **{"Content-Type": "text/plain"}))[0] == 415
    assert rig.events("invoke") == []


async def test_an_answer_is_shown_with_its_time_and_whether_the_model_was_there(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with looking(rig) as browser:
        status, cold = await browser.send(request("a.tar.gz", "[1]"))
        assert status == 200 and cold["status"] == 200 and not cold["is_warm"] and cold["ms"] > 0
        assert json.loads(cold["body"])["body"] == "[1]"
        assert (await browser.send(request("a.tar.gz")))[1]["is_warm"]


async def test_an_error_is_shown_as_aws_says_it(rig: Any) -> None:
    rig.put("bad.tar.gz", invoke_status=500, invoke_body="no weights")
    async with looking(rig) as browser:
        _, answer = await browser.send(request("bad.tar.gz"))
        assert answer["status"] == 424 and answer["error"] == "ModelError" and "no weights" in answer["body"]
        _, answer = await browser.send(request("none.tar.gz"))
        assert answer["error"] == "ValidationError" and "none.tar.gz" in answer["body"]


@pytest.mark.parametrize("described", [{}, [], "text", {"endpoint": "shop"}])
async def test_a_request_that_is_not_described_is_refused(rig: Any, described: Any) -> None:
    async with looking(rig) as browser:
        assert (await browser.send(described))[0] == 400
        assert (await browser.send(request("a") | {"endpoint": "none"}))[0] == 404


async def test_the_stream_tells_everything_once_and_then_what_changed(rig: Any) -> None:
    rig.put("a.tar.gz")
    rig.put("b.tar.gz")
    async with looking(rig) as browser, browser.session.get(browser.url + "/events") as stream:
        assert stream.content_type == "text/event-stream"
        first = await browser.read(stream)
        assert [endpoint["name"] for endpoint in first["fleet"]] == ["shop"]
        while len(browser.tiles) < 2:
            await browser.read(stream)
        assert {tile[0] for tile in browser.tiles.values()} == {"s3"}
        await rig.ask("a.tar.gz")
        while browser.tiles["a.tar.gz"][0] != "memory":
            told = await browser.read(stream)
            assert "fleet" not in told or told["fleet"] != first["fleet"]
            for changes in told.get("tiles", {}).values():
                assert "b.tar.gz" not in changes
        assert browser.tiles["a.tar.gz"][4] == 1
        assert any(line.startswith("fetched a from S3") for line in browser.log)
        assert any(line.startswith("loaded a in ") for line in browser.log)


async def test_figures_stay_where_more_packages_are_shown_than_have_figures_kept(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_MODELS", 2)  # the endpoint's own and those of the one that is called
    for name in "abc":
        rig.put(f"{name}.tar.gz")
    async with looking(rig) as browser, browser.session.get(browser.url + "/events") as stream:
        await rig.ask("a.tar.gz")
        while len(browser.tiles) < 3 or browser.tiles["a.tar.gz"][4] < 1:
            await browser.read(stream)
        for _ in range(3):
            await browser.read(stream)
        assert browser.tiles["a.tar.gz"][4] == 1


async def test_all_who_look_are_told_the_same(rig: Any) -> None:
    rig.put("a.tar.gz")
    async with looking(rig) as early, early.session.get(early.url + "/events") as first:
        await rig.ask("a.tar.gz")
        while early.tiles.get("a.tar.gz", [""])[0] != "memory":
            await early.read(first)
        late = Browser(early.page, early.session)
        async with late.session.get(late.url + "/events") as second:
            while late.tiles.get("a.tar.gz", [""])[0] != "memory":
                await late.read(second)
            await rig.ask("a.tar.gz")
            for browser, stream in ((early, first), (late, second)):
                states = []
                while (browser.tiles["a.tar.gz"][0], browser.tiles["a.tar.gz"][4]) != ("memory", 2):
                    await browser.read(stream)
                    states.append(browser.tiles["a.tar.gz"][0])
                assert "answering" in states


async def test_the_stream_says_who_was_evicted_for_whom(rig: Any) -> None:
    rig.put("old.tar.gz")
    rig.put("new.tar.gz")
    plan = rig.plan(environment={"STAND_IN_CAPACITY": "1"})
    async with looking(rig, plan) as browser, browser.session.get(browser.url + "/events") as stream:
        await rig.ask("old.tar.gz")
        await rig.ask("new.tar.gz")
        while browser.tiles.get("new.tar.gz", [""])[0] != "memory":
            await browser.read(stream)
        assert browser.tiles["old.tar.gz"][0] == "disk" and browser.tiles["old.tar.gz"][6] == 1
        assert any(line.startswith("evicted old for new: least recently used, ") for line in browser.log)


async def test_a_model_that_failed_is_shown_so_until_it_loads(rig: Any) -> None:
    rig.put("a.tar.gz", load_status=400, load_message="no handler")
    async with looking(rig) as browser, browser.session.get(browser.url + "/events") as stream:
        await browser.send(request("a.tar.gz"))
        while "no handler" not in str(browser.tiles.get("a.tar.gz")):
            await browser.read(stream)
        rig.put("a.tar.gz")
        await browser.send(request("a.tar.gz"))
        while browser.tiles["a.tar.gz"][-1] != "":
            await browser.read(stream)


async def test_containers_and_s3_are_asked_only_while_somebody_looks(rig: Any) -> None:
    async with looking(rig) as browser:
        assert not browser.page._sight.viewers and browser.page._sight._looking is None
        async with browser.session.get(browser.url + "/events") as stream:
            await browser.read(stream)
            assert browser.page._sight.viewers == 1
        await rig.until(lambda: browser.page._sight._looking is None)


def key_from(secret: str, port: int, nonce: str) -> str:
    """As an open page makes it."""
    return hmac.new(secret.encode(), f"{port} {nonce}".encode(), "sha256").hexdigest()[:32]


async def test_an_open_page_finds_the_next_start_and_its_old_cookie_opens_nothing(rig: Any) -> None:
    async with looking(rig) as browser:
        async with browser.session.get(browser.url + "/events") as stream:
            secret = (await browser.read(stream))["secret"]
        await browser.page.close()
        page = await started(rig, Recorder())
        try:
            assert page.url != browser.page.url and page.url.startswith(browser.url)
            assert (await browser.get("/events"))[0] == 403
            nonce = json.loads((await browser.get("/start"))[2])["nonce"]
            key = key_from(secret, int(browser.url.rpartition(":")[2]), nonce)
            assert (await browser.get(f"/?key={key}"))[0] == 200
            async with browser.session.get(browser.url + "/events") as stream:
                assert stream.status == 200
        finally:
            await page.close()


async def test_a_program_that_has_taken_the_port_learns_nothing_that_opens_the_page(rig: Any) -> None:
    async with looking(rig) as browser:
        port = int(browser.url.rpartition(":")[2])
        async with browser.session.get(browser.url + "/events") as stream:
            secret = (await browser.read(stream))["secret"]
        page = await started(rig, Recorder())  # the first one still has the port
        try:
            elsewhere = page.url.partition("?")[0]
            assert elsewhere != browser.url + "/"
            async with browser.session.get(elsewhere + "start") as response:
                nonce = (await response.json())["nonce"]
            async with browser.session.get(f"{elsewhere}?key={key_from(secret, port, nonce)}") as response:
                assert response.status == 403  # made by a page at the old port, of the new start's nonce
        finally:
            await page.close()


async def test_too_many_pages_are_refused(rig: Any) -> None:
    async with looking(rig) as browser, contextlib.AsyncExitStack() as stack:
        for _ in range(16):
            response = await stack.enter_async_context(browser.session.get(browser.url + "/events"))
            assert response.status == 200
        assert (await browser.get("/events"))[0] == 503


async def test_a_package_is_shown_from_s3_and_from_the_disk_alike(rig: Any, pack: Any) -> None:
    example = {"name": "one", "body": "[1]", "answer": 1}
    behaviour = json.dumps({"answer": "a"})
    files = {"behaviour.json": behaviour, "requirements.txt": "numpy\n", "examples.json": json.dumps([example])}
    rig.put_bytes("a.tar.gz", pack(files))
    where = "/model?endpoint=shop&variant=AllTraffic&instance=0&target=a.tar.gz"
    async with looking(rig) as browser:
        _, _, from_s3 = await browser.get(where)
        await rig.ask("a.tar.gz")
        _, _, from_disk = await browser.get(where)
        shown = json.loads(from_disk)
        assert json.loads(from_s3)["workers"] == [] and len(shown["workers"]) == 1
        assert json.loads(from_s3) | {"workers": shown["workers"]} == shown
        assert shown["files"] == sorted(files) and shown["texts"] == {"requirements.txt": "numpy\n"}
        assert shown["examples"][0]["body"] == "[1]"
        status, _, answer = await browser.get(where.replace("a.tar.gz", "none.tar.gz"))
        assert status == 422 and "none.tar.gz" in json.loads(answer)["message"]


async def test_a_model_is_shown_with_its_own_records_of_the_instances_log(rig: Any) -> None:
    rig.put("a.tar.gz")
    records = [
        "[a.tar.gz] ready",
        "[aa.tar.gz] not its own",
        "a.tar.gz: not loaded\n    Traceback\n\n    ValueError: no",
    ]
    where = "/model?endpoint=shop&variant=AllTraffic&target=a.tar.gz&instance="
    async with looking(rig) as browser:
        with (rig.instance.folder / "container.log").open("a") as log:
            log.write("\n".join([*records, "of nobody"]) + "\n")
        assert json.loads((await browser.get(where + "0"))[2])["log"] == [records[0], records[2]]
        assert (await browser.get(where + "7"))[0] == 404


async def test_a_single_model_is_a_tile_and_can_be_asked(rig: Any) -> None:
    rig.put("one.tar.gz")
    plan = rig.plan(mode="SingleModel", model_data_url=f"s3://packages/{rig.prefix}/one.tar.gz")
    async with looking(rig, plan) as browser, browser.session.get(browser.url + "/events") as stream:
        await browser.read(stream)
        assert browser.tiles[""][0] == "memory"
        assert (await browser.send(request("")))[1]["status"] == 200
        _, _, shown = await browser.get("/model?endpoint=shop&variant=AllTraffic&instance=0&target=")
        assert json.loads(shown)["files"] == ["behaviour.json"]


async def test_pages_that_are_open_do_not_keep_the_platform_from_ending(rig: Any) -> None:
    async with looking(rig) as browser, browser.session.get(browser.url + "/events") as stream:
        await browser.read(stream)
        async with asyncio.timeout(10):
            await browser.page.close()

"""The live page in a browser: what it shows of models that come and go, and of requests that it sends."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from botocore.exceptions import ClientError
from playwright.sync_api import Browser, Locator, Page, expect
from scene import Scene

pytestmark = pytest.mark.browser

Look = Callable[..., Page]


def tile(page: Page, name: str) -> Locator:
    return page.get_by_role("button", name=re.compile(f"^{name}: "))


def expect_at(page: Page, name: str, where: str) -> None:
    """The tile says where the model is, to who sees it and to who hears it."""
    expect(tile(page, name)).to_have_accessible_name(re.compile(f"^{name}: {where}"))
    expect(tile(page, name)).to_contain_text(re.compile(where))


def test_the_page_shows_the_endpoint_with_its_models_from_this_platform_alone(look: Look, scene: Scene) -> None:
    page = look()
    hosts: set[str] = set()
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]))
    page.reload()
    expect(page).to_have_title("Multi-model endpoints, live")
    expect(page.get_by_role("heading", name="shop")).to_be_visible()
    expect(page.get_by_role("list", name="models of shop, instance 0").get_by_role("listitem")).to_have_count(5)
    expect_at(page, "small", "(S3 only|on disk|in memory)")
    assert hosts == {scene.running.page_url.split("/")[2]}
    assert "key" not in page.url


def test_models_are_shown_loading_then_in_memory(look: Look, scene: Scene) -> None:
    page = look()
    with TemporaryDirectory(dir="/dev/shm") as folder:  # which workers may read
        gate = Path(folder) / "open"
        scene.put("shop", "gated", gate=str(gate))
        expect_at(page, "gated", "S3 only")
        caller = threading.Thread(target=scene.call, args=("shop", "gated"))
        caller.start()
        try:
            expect_at(page, "gated", "loading")
        finally:
            gate.touch()
            caller.join()
        expect_at(page, "gated", "in memory · ")


def test_evictions_are_shown_and_told_as_they_happen(look: Look, scene: Scene) -> None:
    page = look()
    evictions = page.locator("[data-total=evictions]")
    before = evictions.inner_text()
    for number in (1, 2, 3):
        assert scene.call("shop", f"large-{number}", 1) == 1 + number
        expect_at(page, f"large-{number}", "in memory")
    expect_at(page, "large-1", "on disk")
    expect(evictions).not_to_have_text(before)
    events = page.get_by_role("list", name="What happened")
    evicted = re.compile("^evicted large-1 for large-3: least recently used, .* ago")
    expect(events.get_by_text(evicted).first).to_be_visible()
    expect(events.get_by_text(re.compile("^loaded large-3 in ")).first).to_be_visible()
    expect(page.get_by_role("button", name=re.compile(r"^on disk [1-9]"))).to_be_visible()


def test_a_request_is_sent_with_the_packages_example_and_answered(look: Look) -> None:
    page = look()
    tile(page, "small").click()
    model = page.get_by_role("dialog", name="small")
    expect(model.get_by_label("Example")).to_contain_text("two")
    expect(model.get_by_label("Body")).to_have_value(re.compile('"number": 2'))
    model.get_by_label("Body").fill('{"number": 2.5}')
    model.get_by_role("button", name="Send").click()
    expect(model.get_by_role("status")).to_contain_text(re.compile(r"Answered 200, (cold|warm), .*42\.5", re.DOTALL))
    expect(model.get_by_label("Log")).to_contain_text("ready to add 40")
    expect(model.get_by_label("Package")).to_contain_text("model.py")
    expect_at(page, "small", "in memory")


def test_requests_and_answers_go_to_the_last_digit_and_line_end(look: Look, scene: Scene) -> None:
    example = '{"number":\r\n 9007199254740993, "weight": 1.0}'
    scene.put("shop", "exact", example=example)
    page = look()
    tile(page, "exact").click()
    model = page.get_by_role("dialog", name="exact")
    body, send, answer = (
        model.get_by_label("Body"),
        model.get_by_role("button", name="Send"),
        model.get_by_label("answer"),
    )
    expect(body).to_have_value(example.replace("\r\n", "\n"))
    with page.expect_request("**/invoke") as sent:
        send.click()
    assert sent.value.post_data_json["body"] == example
    expect(answer).to_contain_text("9007199254740993")
    edited = '{"number": 1.0,  "weight": 1e2}'
    body.fill(edited)
    with page.expect_request("**/invoke") as sent:
        send.click()
    assert sent.value.post_data_json["body"] == edited
    expect(answer).to_contain_text("1.0")


def test_errors_are_shown_with_their_reason(look: Look) -> None:
    page = look()
    tile(page, "broken").click()
    model = page.get_by_role("dialog", name="broken")
    expect(model.get_by_label("Example")).to_contain_text("two")
    model.get_by_role("button", name="Send").click()
    expect(model.get_by_role("status")).to_contain_text("ModelError")
    expect(model.get_by_label("Log")).to_contain_text("RuntimeError: the handler has no weights")
    page.keyboard.press("Escape")
    expect_at(page, "broken", "failed")
    expect(page.get_by_role("list", name="What happened")).to_contain_text("could not bring broken")
    expect(page.locator("[data-total=failed]")).not_to_have_text("0")
    tile(page, "small").click()
    model = page.get_by_role("dialog", name="small")
    expect(model.get_by_label("Example")).to_contain_text("two")
    model.get_by_label("Body").fill("{}")
    model.get_by_role("button", name="Send").click()
    expect(model.get_by_role("status")).to_contain_text(re.compile("424 ModelError"))
    expect(model.get_by_label("Log")).to_contain_text("KeyError")


def test_models_are_found_by_name_and_by_where_they_are(look: Look, scene: Scene) -> None:
    with pytest.raises(ClientError):
        scene.call("shop", "broken")
    page = look()
    tiles = page.get_by_role("list", name="models of shop, instance 0").get_by_role("listitem")
    expect(tiles).not_to_have_count(0)
    page.get_by_role("searchbox", name="Find models").fill("LARGE")
    expect(tiles).to_have_count(3)
    failed = page.get_by_role("button", name=re.compile("^failed"))
    failed.click()
    expect(failed).to_have_attribute("aria-pressed", "true")
    expect(tiles).to_have_count(1)
    failed.click()
    expect(page.get_by_role("searchbox", name="Find models")).to_have_value("")


def test_an_address_without_the_key_shows_no_page(browser: Browser, scene: Scene) -> None:
    context = browser.new_context()
    page = context.new_page()
    answer = page.goto(scene.running.page_url.partition("?")[0])
    assert answer is not None and answer.status == 403
    expect(page.locator("body")).to_contain_text("mme open")
    context.close()

"""The live page for everybody: dark and light, wide and narrow, by keyboard, and for a screen reader."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect
from scene import Scene

pytestmark = pytest.mark.browser

Look = Callable[..., Page]

CONTRAST = Path(__file__).with_name("contrast.js").read_text()
# Keeps what the page announces, line by line: the next announcement takes the place of the one before.
KEEP = """announcer => new MutationObserver(() => {
    announcer.dataset.said = `${announcer.dataset.said ?? ""}${announcer.textContent}\\n`;
}).observe(announcer, { subtree: true, childList: true, characterData: true })"""
OVERFLOW = "element => element.scrollWidth - element.clientWidth"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_everything_can_be_read_and_nothing_scrolls_sideways(look: Look, scheme: str, width: int) -> None:
    page = look(scheme=scheme, width=width)
    for name in ("broken", "small"):  # an answer that failed, and one that didn't
        page.get_by_role("button", name=re.compile(f"^{name}: ")).click()
        model = page.get_by_role("dialog")
        expect(model.get_by_label("Example")).to_contain_text("two")
        model.get_by_role("button", name="Send").click()
        expect(model.get_by_role("status").locator("pre")).to_be_visible()
        expect(model.get_by_label("model.py")).to_be_visible()
        assert_readable(page)
        assert model.evaluate(OVERFLOW) == 0
        model.get_by_role("button", name="Close").click()
    assert_readable(page)
    assert page.locator("html").evaluate(OVERFLOW) == 0


def assert_readable(page: Page) -> None:
    found = page.evaluate(CONTRAST)
    assert found["checked"] > 40
    assert found["weak"] == []


def test_everything_has_a_role_and_a_name(look: Look) -> None:
    page = look()
    expect(page.get_by_role("list", name="models of shop, instance 0").get_by_role("listitem")).not_to_have_count(0)
    expect(page.locator("body")).to_match_aria_snapshot("""
        - link "Skip to the endpoints"
        - banner:
          - heading "Multi-model endpoints" [level=1]
          - status: Live
        - main:
          - region "All calls":
            - heading "All calls" [level=2]
            - term: calls a second
            - definition
            - figure:
              - img "Calls a second over the last two minutes"
          - region "Endpoints":
            - heading "Endpoints" [level=2]
            - list "Where the models are":
              - listitem:
                - button /S3 only \\d+/
            - searchbox "Find models"
            - heading /shop/ [level=3]
            - heading "Instance 0" [level=4]
            - meter "memory of shop, instance 0"
            - list "models of shop, instance 0"
          - region "What happened":
            - heading "What happened" [level=2]
            - list "What happened"
        """)
    assert unnamed(page) == []
    page.get_by_role("button", name=re.compile("^small: ")).click()
    expect(page.get_by_role("dialog")).to_match_aria_snapshot("""
        - dialog "small":
          - heading "small" [level=2]
          - button "Close"
          - term: workers
          - definition
          - heading "Send a request" [level=3]
          - combobox "Example"
          - textbox "Content type"
          - textbox "Body"
          - button "Send"
          - heading "Log" [level=3]
          - heading "Package" [level=3]
        """)
    assert unnamed(page) == []


def unnamed(page: Page) -> list[str]:
    """What can be used or focused, is seen, and has no name in the accessibility tree."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "searchbox", "combobox", "link", "list", "meter", "image", "dialog", "heading"}
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"] and node["role"]["value"] in roles
    ]
    assert len(named) > 10
    return [role for role, name in named if not name]


def test_the_tab_key_goes_through_the_page_in_the_order_that_it_is_read(look: Look) -> None:
    page = look()
    expect(page.get_by_role("list", name="models of shop, instance 0").get_by_role("listitem")).not_to_have_count(0)
    stops = []
    for _ in range(10):
        page.keyboard.press("Tab")
        stops.append(focused(page))
    assert stops[0] == "Skip to the endpoints"
    assert [re.sub(r" \d+$", "", stop) for stop in stops[1:7]] == [
        *("S3 only", "on disk", "loading", "in memory", "answering", "failed"),
    ]
    assert stops[7] == "find"
    assert stops[8].startswith("broken: ")  # the first tile; arrow keys reach the others
    assert stops[9] == "log"


def test_tiles_are_walked_by_arrow_keys_and_opened_and_closed_again(look: Look) -> None:
    page = look()
    tiles = page.get_by_role("list", name="models of shop, instance 0").get_by_role("button")
    expect(tiles).not_to_have_count(0)
    names = [tile.get_attribute("aria-label").partition(":")[0] for tile in tiles.all()]
    tiles.first.focus()
    for key, at in (("ArrowRight", 1), ("End", -1), ("ArrowRight", -1), ("ArrowLeft", -2), ("Home", 0)):
        page.keyboard.press(key)
        assert focused(page).partition(":")[0] == names[at], key
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name=names[1])).to_be_visible()
    assert focused(page) == names[1]
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    assert focused(page).partition(":")[0] == names[1]


def test_news_are_read_out_in_sum_and_not_line_by_line(look: Look, scene: Scene) -> None:
    page = look()
    announcer = page.locator("[aria-live=polite]")
    expect(announcer).not_to_be_empty()  # what had happened before
    announcer.evaluate(KEEP)
    for number in (1, 2, 3, 1):  # two fit: at each call something is loaded, and something evicted
        scene.call("shop", f"large-{number}")
    in_sum = re.compile(r"^(fetched|loaded|evicted) .*large.*, and [1-9]\d* more$", re.MULTILINE)
    expect(announcer).to_have_attribute("data-said", in_sum)
    assert page.get_by_role("list", name="What happened").get_attribute("aria-live") is None


def focused(page: Page) -> str:
    """What has the focus, by its name, its id, or its text."""
    return str(
        page.evaluate("""() => {
        const element = document.activeElement;
        return element.ariaLabel || (element.matches("input, ol") ? element.id : element.textContent.trim());
    }""")
    )

"""The live page with a thousand models on two instances: a change redraws what it changes, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect
from scene import Scene

pytestmark = pytest.mark.browser

NAMES = [f"tenant-{number:04d}" for number in range(1, 1001)]

# Counts what is changed below the endpoints, by tile; what is outside of tiles counts as the element that it is.
WATCH = """() => {
    window.changes = {};
    new MutationObserver((records) => {
        for (const { target } of records) {
            const element = target.nodeType === Node.TEXT_NODE ? target.parentElement : target;
            const name = element?.closest(".tile")?.dataset.target ?? element?.className;
            changes[name] = (changes[name] ?? 0) + 1;
        }
    }).observe(document.getElementById("fleet"),
               { subtree: true, childList: true, attributes: true, characterData: true });
    window.since = performance.now();
}"""


@pytest.fixture(scope="module")
def crowd(scene: Scene) -> Iterator[Scene]:
    archive = scene.put("crowd", "tenant-0000", number=5)
    scene.put_copies("crowd", archive, NAMES)
    scene.deploy("crowd", instances=2)
    yield scene
    scene.delete("crowd")


def test_a_change_among_a_thousand_models_redraws_its_tile_alone(look: Callable[..., Page], crowd: Scene) -> None:
    page = look()
    for instance in (0, 1):
        models = page.get_by_role("list", name=f"models of crowd, instance {instance}")
        expect(models.get_by_role("listitem")).to_have_count(1001)
    in_order = models.get_by_role("listitem").all_inner_texts()
    assert in_order == sorted(in_order)

    page.evaluate(WATCH)
    called = [NAMES[0], NAMES[499], NAMES[999]]
    for name in called:
        for _ in range(20):
            assert crowd.call("crowd", name, 2) == 7
    for name in called:
        loaded = page.get_by_role("button", name=re.compile(rf"^{name}: in memory · .* MB, warm"))
        expect(loaded).to_have_count(1)
    changes, told = page.evaluate("[changes, (performance.now() - since) / 250]")
    tiles = {name: count for name, count in changes.items() if name.endswith(".tar.gz")}
    assert set(tiles) == {f"{name}.tar.gz" for name in called}
    # Each tile was drawn when the page was told, four times a second at the most, not once for each call.
    assert all(count < 5 * (told + 3) for count in tiles.values()), (told, tiles)
    assert set(changes) - set(tiles) <= {"", "gauge", "facts"}, "endpoints or lists of tiles were laid out anew"


def test_what_the_page_holds_does_not_grow_with_calls(look: Callable[..., Page], crowd: Scene) -> None:
    page = look()
    expect(page.get_by_role("list", name="models of crowd, instance 1").get_by_role("listitem")).to_have_count(1001)
    for name in NAMES[:20]:
        crowd.call("crowd", name)
    expect(page.get_by_role("button", name=re.compile(f"^{NAMES[19]}: in memory"))).to_have_count(1)
    held = page.evaluate("document.querySelectorAll('main *:not(#log *)').length")
    for _ in range(10):
        for name in NAMES[:20]:
            crowd.call("crowd", name)
    expect(page.get_by_role("button", name=re.compile(f"^{NAMES[19]}: in memory .* warm"))).to_have_count(1)
    assert page.evaluate("document.querySelectorAll('main *:not(#log *)').length") == held
    assert page.locator("#log li").count() <= 200


def test_a_thousand_models_are_searched_at_once(look: Callable[..., Page], crowd: Scene) -> None:
    page = look(width=400)
    expect(page.get_by_role("list", name="models of crowd, instance 1").get_by_role("listitem")).to_have_count(1001)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    page.get_by_role("searchbox", name="Find models").fill("0777")
    expect(page.locator(".tile").filter(visible=True)).to_have_count(2)

"""A live page whose platform ends, and starts again."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, expect
from scene import Scene, opened

pytestmark = pytest.mark.browser


def test_a_page_says_that_its_platform_has_ended_and_follows_the_next_start(browser: Browser, scene: Scene) -> None:
    page = opened(browser, scene.running.page_url)
    small = page.get_by_role("button", name=re.compile("^small: "))
    small.click()
    model = page.get_by_role("dialog", name="small")
    before = scene.running
    scene.stop()
    connection = page.locator("#connection")
    expect(connection).to_have_text("The platform does not answer; mme up starts it")
    model.get_by_role("button", name="Send").click()
    expect(model.get_by_role("status")).to_contain_text("The platform does not answer")

    scene.start()
    assert scene.running.page_url != before.page_url, "each start has a key of its own"
    expect(connection).to_have_text("Live")
    expect(model.locator("#model-state")).to_have_text(re.compile("on disk|S3 only"))
    model.get_by_role("button", name="Send").click()
    expect(model.get_by_role("status")).to_contain_text("Answered 200")
    model.get_by_role("button", name="Close").click()
    expect(small).to_have_accessible_name(re.compile("^small: in memory"))
    expect(page.get_by_role("list", name="What happened")).to_contain_text("endpoint shop is up")
    page.context.close()

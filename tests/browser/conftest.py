"""What the browser's tests share: one platform for all, a browser for each file, a page for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect
from scene import Scene, chromium, opened, scene_in

expect.set_options(timeout=60_000)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Instances of 512 MB: two of the models `large-…` fit beside each other, three don't. `broken` can't be loaded."""
    with scene_in(tmp_path_factory.mktemp("scene")) as there:
        for number in (1, 2, 3):
            there.put("shop", f"large-{number}", number=number, ballast_mb=170)
        there.put("shop", "small", number=40)
        there.put_broken("shop", "broken")
        there.deploy("shop")
        yield there


# Not for the session: while Playwright runs, its event loop is the thread's, and other tests want their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as there:
        yield there


@pytest.fixture
def look(browser: Browser, scene: Scene) -> Iterator[Callable[..., Page]]:
    """Opens the live page, as `scene.opened` does. No page may have said an error in the end."""
    pages: list[Page] = []
    errors: list[str] = []

    def open_page(**options: Any) -> Page:
        page = opened(browser, scene.running.page_url, **options)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        page.context.close()
    assert errors == []

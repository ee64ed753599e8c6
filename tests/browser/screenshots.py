"""Takes the pictures of the live page that the documentation shows: `make screenshots`."""

from __future__ import annotations

import io
import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page
from scene import Scene, chromium, opened, scene_in

IMAGES = Path(__file__).parents[2] / "docs" / "images"
# Each a tenant with a model of its own. The first six have most of the calls, the last one's model can't be loaded.
TENANTS = [
    *("beacon-optics", "cedar-cycles", "clover-dairy", "hazel-coffee", "maple-toys", "pebble-shoes"),
    *("acorn-books", "anchor-tea", "birch-bakery", "comet-cinema", "copper-kitchen", "coral-travel", "crane-tailors"),
    *("delta-print", "ember-candles", "falcon-couriers", "fern-garden", "iris-pharmacy", "juniper-farm"),
    *("kestrel-tools", "lantern-games", "nova-phones", "opal-jewels", "quill-papers", "raven-records"),
    *("sorrel-soaps", "willow-music", "harbor-fish"),
]
BUSY = TENANTS[:6]
HEAVY_MB = 26  # so that about half of them fit
BEFORE_S = 75  # of calls, so that the chart has something to show


def traffic(scene: Scene, ended: threading.Event) -> None:
    """Most calls to a few models, some to others; the busy seconds come and go. The last few are never called."""
    chance = random.Random(7)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        while not ended.is_set():
            is_busy = (time.monotonic() - began) % 30 > 12
            name = chance.choice(BUSY if chance.random() < 0.96 else TENANTS[:-6])
            pool.submit(scene.call, "shops", name)
            ended.wait(chance.expovariate(60 if is_busy else 15))


def take(page: Page, name: str) -> None:
    """A small file: 200 colours are enough for it."""
    page.evaluate("document.querySelector('dialog[open]') ?? document.activeElement.blur()")
    page.evaluate("scrollTo(0, 0)")
    whole = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    whole.quantize(200, dither=Image.Dither.NONE).save(IMAGES / f"page-{name}.png", optimize=True)


def ask(page: Page, name: str, answer: str) -> None:
    """Open a model, send its example, and wait for this answer."""
    page.get_by_role("button", name=f"{name}: ").click()
    page.locator("#example option[value]").first.wait_for(state="attached")
    page.get_by_role("button", name="Send").click()
    page.locator("#answer").get_by_text(answer).wait_for()


def main() -> None:
    ended = threading.Event()
    with tempfile.TemporaryDirectory() as folder, scene_in(Path(folder)) as scene, chromium() as browser:
        for number, name in enumerate(TENANTS[:-1]):
            scene.put("shops", name, number=number, ballast_mb=HEAVY_MB)
        scene.put_broken("shops", TENANTS[-1])
        scene.deploy("shops")
        url = scene.running.page_url
        pages = {
            "light": opened(browser, url),
            "dark": opened(browser, url, scheme="dark"),
            "narrow": opened(browser, url, width=400, height=860),
            "model": opened(browser, url),
        }
        caller = threading.Thread(target=traffic, args=(scene, ended))
        caller.start()
        try:
            ask(pages["light"], TENANTS[-1], "ModelError")
            pages["light"].get_by_role("button", name="Close").click()
            pages["light"].wait_for_timeout(1000 * BEFORE_S)
            ask(pages["model"], "hazel-coffee", "Answered 200")
            for name, page in pages.items():
                take(page, name)
        finally:
            ended.set()
            caller.join()


if __name__ == "__main__":
    main()

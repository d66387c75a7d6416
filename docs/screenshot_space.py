"""Open a demo Space in headless Chromium, use its page as a visitor does, and take a picture of it.

    pip install gradio playwright && apt-get install chromium
    python docs/screenshot_space.py --space outputs/demo/space --query "an angry face" --output space.png
    python docs/screenshot_space.py --space outputs/demo/space --query "an angry face" --width 390 --output phone.png

The Space is a folder that `publish_model.py --space` or `hub.space.stage_space` wrote.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from xmodal_hf.commands import command_parser, run_command

# Of the picture, in pixels.
WIDTH, HEIGHT = 1100, 760
TIMEOUT_MS = 60_000


def main(args: Sequence[str] | None = None) -> None:
    """Serve the Space, search, take the picture."""
    parser = command_parser(__doc__)
    parser.add_argument("--space", type=Path, required=True, help="Folder of the Space.")
    parser.add_argument("--query", required=True, help="Text to search for.")
    parser.add_argument("--output", type=Path, required=True, help="The picture, as PNG.")
    parser.add_argument("--width", type=int, default=WIDTH, help="Width of the window in pixels; 390 is a phone's.")
    options = parser.parse_args(args)
    app = load_app(options.space)
    with serving(app, options.space) as url, browser_page(url, options.width) as page:
        search_by_text(page, options.query, expected_answers(app, options.space, options.query))
        save_picture(page, options.output)
    print(f"{options.output}, {options.output.stat().st_size:,} bytes")


@contextmanager
def serving(app: ModuleType, space: Path) -> Iterator[str]:
    """Run a Space's app in this process and give its address."""
    import gradio

    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    # Not in the main thread, which waits for the browser.
    _, url, _ = app.launch(space, prevent_thread_lock=True, quiet=True, server_name="127.0.0.1")
    try:
        yield url
    finally:
        gradio.close_all(verbose=False)


def load_app(space: Path) -> ModuleType:
    """Import app.py and search.py of a Space."""
    for name in ("search", "app"):
        specification = importlib.util.spec_from_file_location(name, space / f"{name}.py")
        assert specification is not None and specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    return module


@contextmanager
def browser_page(url: str, width: int = WIDTH) -> Iterator[Any]:
    """Give a page of headless Chromium with the Space open."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Without its sandbox, which root may not use: it sees this one page.
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": HEIGHT})
        page.set_default_timeout(TIMEOUT_MS)
        page.goto(url)
        yield page
        browser.close()


def expected_answers(app: ModuleType, space: Path, query: str) -> list[str]:
    """Return what the page has to write under the answers to a text."""
    return app.titles(app.Demo(space).search_text(query, app.TOP_K["image"]))


def search_by_text(page: Any, query: str, expected: list[str]) -> None:
    """Type a text, search, and wait until the answers are there."""
    # A page answers its first query by itself; clicks before that are lost.
    page.locator(".answers:visible .caption-label").first.wait_for()
    page.get_by_role("textbox").first.fill(query)
    page.get_by_role("button", name="Search").click()
    wait_for_captions(page, expected)


def wait_for_captions(page: Any, expected: list[str]) -> None:
    """Wait until the gallery in view has these captions, and its images."""
    captions = page.locator(".answers:visible .caption-label")
    for number, caption in enumerate(expected):
        captions.nth(number).filter(has_text=caption).wait_for()
    page.wait_for_function("[...document.querySelectorAll('.answers img')].every(image => image.complete)")


def save_picture(page: Any, path: Path) -> None:
    """Write the page as a PNG of 256 colours, which takes a third of the space."""
    from PIL import Image

    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


if __name__ == "__main__":
    run_command(main)

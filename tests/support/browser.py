"""Headless Chromium, driven through chromedriver's W3C protocol; nothing to install in Python."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromedriver")
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own name for the field
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
    "--window-size=1600,1200", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


def missing() -> str:
    """Return why no browser can be driven here, or nothing."""
    lacking = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"{' and '.join(lacking)} not installed" if lacking else ""


class Browser:
    """One window. ``open`` a page, ``text`` of it, ``wait`` for words, ``click`` on them."""

    def __init__(self) -> None:
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self.address = f"http://127.0.0.1:{self._port()}/session"
        chrome = {
            "args": [*ARGUMENTS, f"--user-data-dir={self.profile.name}"],
            "binary": shutil.which("chromium"),
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": chrome}
        started = self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})
        self.address += f"/{started['sessionId']}"

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self.driver.kill()
            self.driver.wait()
            assert self.driver.stdout is not None
            self.driver.stdout.close()
            self.profile.cleanup()

    def _port(self) -> str:
        assert self.driver.stdout is not None
        for line in self.driver.stdout:
            if "started successfully on port" in line:
                return line.strip().rstrip(".").rpartition(" ")[2]
        raise AssertionError("chromedriver did not start")

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.address + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()[:500]) from None

    def open(self, url: str) -> None:
        """Load a page from nothing, also where only the part after # differs."""
        self._ask("POST", "/url", {"url": "about:blank"})
        self._ask("POST", "/url", {"url": url})

    def script(self, code: str, *arguments: Any) -> Any:
        """Run JavaScript in the page and return what it returns."""
        return self._ask("POST", "/execute/sync", {"script": code, "args": list(arguments)})

    def text(self) -> str:
        """Return all words on the page, and on pages shown in it."""
        words = [self._words()]
        for frame in self._find("iframe"):
            self._ask("POST", "/frame", {"id": frame})
            words.append(self._words())
            self._ask("POST", "/frame", {"id": None})
        return "\n".join(words)

    def _words(self) -> str:
        return str(self.script("return document.body ? document.body.innerText : ''"))

    def _find(self, value: str, using: str = "css selector") -> list[dict[str, str]]:
        found: list[dict[str, str]] = self._ask(
            "POST", "/elements", {"using": using, "value": value}
        )
        return found

    def wait(self, *words: str, seconds: float = 90) -> float:
        """Wait until all words are on the page; returns the seconds that it took."""
        began = time.monotonic()
        while lacking := [word for word in words if word not in self.text()]:
            if time.monotonic() - began > seconds:
                raise AssertionError(f"{lacking} did not appear in: {self.text()[:2000]}")
            time.sleep(0.05)
        return time.monotonic() - began

    def click(self, words: str, tag: str = "*") -> None:
        """Click on the innermost element whose own text is ``words``, once it lets itself click."""
        deadline = time.monotonic() + 20
        while True:
            try:
                found = self._find(f"//{tag}[normalize-space(.)='{words}']", "xpath")
                assert found, f"nothing to click says {words!r}"
                self._ask("POST", f"/element/{found[-1][ELEMENT]}/click", {})
                return
            except AssertionError:  # being drawn anew, or moving
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def scroll_to(self, words: str) -> None:
        """Bring an element whose own text is ``words`` into sight: charts are drawn only there."""
        self.script(
            "[...document.querySelectorAll('*')].find(e => !e.children.length "
            "&& e.textContent.trim() === arguments[0]).scrollIntoView()",
            words,
        )

    def screenshot(self, path: Path) -> None:
        """Write what the window shows, as PNG."""
        path.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

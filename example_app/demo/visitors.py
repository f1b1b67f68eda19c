"""The demo's browsers: visitors who fill in the form, and a member who reads the inbox."""

from __future__ import annotations

import html
import http.client
import json
import re
import threading
import time
import typing as t
import urllib.error
import urllib.parse
import urllib.request
from http.cookiejar import CookieJar

from .letters import Letter

PATIENCE_SECONDS = 60.0
HIDDEN = re.compile(r'<input type="hidden" name="(\w+)" value="([^"]*)"')

ResultT = t.TypeVar("ResultT")


class Browser:
    """Keeps its cookies, and tries again while the web application is away.

    :param address: Of the web application, without a slash at the end.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))

    def get(self, path: str) -> str:
        """Open a page.

        :param path: Its path.
        :return: Its text.
        """
        return self._open(path, None)[1]

    def post(self, path: str, fields: t.Mapping[str, str]) -> str:
        """Send a form, the same one again if there is no answer.

        :param path: Where to.
        :param fields: What is typed, and what stood in it.
        :return: The path of the page that the answer leads to.
        """
        return self._open(path, urllib.parse.urlencode(fields).encode())[0]

    def hidden_fields(self, path: str) -> dict[str, str]:
        """Open a page with a form.

        :param path: Its path.
        :return: The form's nonce and token.
        """
        found = HIDDEN.findall(self.get(path))
        return {name: html.unescape(value) for name, value in found}

    def _open(self, path: str, body: bytes | None) -> tuple[str, str]:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                with self._opener.open(self.address + path, body, timeout=20) as answer:
                    return urllib.parse.urlsplit(answer.url).path, answer.read().decode()
            except (OSError, http.client.HTTPException) as error:
                refused = isinstance(error, urllib.error.HTTPError) and error.code < 500
                if refused or time.monotonic() > until:
                    raise
                time.sleep(0.2)


class Visitors(threading.Thread):
    """Posts letters through the form, each with a browser of its own.

    :param address: Of the web application.
    :param letters: What they write.
    :param impatient: Every how manyth of them clicks twice on the button.
    """

    def __init__(self, address: str, letters: t.Sequence[Letter], impatient: int) -> None:
        super().__init__(daemon=True)
        self.address = address
        self.letters = letters
        self.impatient = impatient
        self.posted: list[tuple[Browser, str]] = []
        """Who has got an answer, with the path of their thanks page."""
        self.error: Exception | None = None

    def run(self) -> None:
        """Post them all; what goes wrong is kept as the error."""
        try:
            for number, letter in enumerate(self.letters, 1):
                self._post(letter, clicks=1 if number % self.impatient else 2)
        except Exception as error:
            self.error = error

    def pages(self) -> list[dict[str, t.Any]]:
        """Give what their thanks pages say."""
        return [json.loads(browser.get(f"{path}.json")) for browser, path in self.posted]

    def _post(self, letter: Letter, clicks: int) -> None:
        browser = Browser(self.address)
        fields = {**browser.hidden_fields("/"), **letter._asdict()}
        paths: list[str] = []
        presses = [
            threading.Thread(target=lambda: paths.append(browser.post("/", fields)))
            for _ in range(clicks)
        ]
        for press in presses:
            press.start()
        for press in presses:
            press.join()
        if not paths or not all(path.startswith("/thanks/") for path in paths):
            raise RuntimeError(f"“{letter.subject}” was not accepted")
        self.posted.append((browser, paths[0]))


class Reader:
    """A member of the team, who has opened the inbox.

    :param address: Of the web application.
    :param password: Of the inbox.
    """

    def __init__(self, address: str, password: str) -> None:
        self._browser = Browser(address)
        fields = self._browser.hidden_fields("/inbox/login")
        self._browser.post("/inbox/login", {**fields, "password": password})

    def messages(self) -> list[dict[str, t.Any]]:
        """Read the whole inbox."""
        found: list[dict[str, t.Any]] = []
        page, pages = 0, 1
        while page < pages:
            answer = self._browser.get(f"/inbox/messages.json?show=all&page={page + 1}")
            listed = json.loads(answer)
            found += listed["messages"]
            page, pages = listed["page"], listed["pages"]
        return found

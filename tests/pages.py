"""A page in a browser, for the tests of reports."""

from pathlib import Path
from typing import Any

HOSTILE = "<img src=x onerror=alert(1)>'\"&amp;"
"""A class name that would do harm as HTML."""


class Opened:
    """A page in the browser, and everything it complained about or asked for.

    Attributes:
        page: Playwright's.
        complaints: errors on the console, and exceptions.
        asked: addresses outside the page.
    """

    def __init__(self, browser: Any, path: Path, width: int = 1400, scheme: str = "light") -> None:
        context = browser.new_context(
            viewport={"width": width, "height": 1000}, color_scheme=scheme
        )
        self.page = context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._requested)
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_function("window.Bokeh === undefined || Bokeh.documents.length > 0")
        self.page.wait_for_timeout(1500)

    def _heard(self, message: Any) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.asked.append(request.url)

    def unfold(self) -> None:
        """Opens the tables that are folded."""
        for summary in self.page.locator("section > details > summary").all():
            summary.click()
        self.page.wait_for_timeout(500)

    def close(self) -> None:
        """Closes it; nothing may have gone wrong."""
        self.page.context.close()
        assert self.complaints == []
        assert self.asked == []

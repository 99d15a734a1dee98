"""What a page must be, whatever it shows: whole, escaped, and asking for nothing."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser

#: Names of browsers that can be run without a screen.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_VOID = {"meta", "link", "img", "br", "hr", "input", "polyline"}


def browser() -> str | None:
    """The path of a Chromium, where one is installed."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


class PageCheck(HTMLParser):
    """Reads a page as a browser does, and notes what it would ask for."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.problems: list[str] = []
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attrs:
            self._attribute(tag, name, value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            self._attribute(tag, name, value or "")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text.append(data)

    def _attribute(self, tag: str, name: str, value: str) -> None:
        if name.startswith("on"):
            self.problems.append(f"{tag} has {name}")
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
            if value.startswith("#"):
                self.links.append(value[1:])
            elif not value.startswith("data:"):
                self.problems.append(f"{tag} {name}={value[:60]}")
        if name == "style" and ("url(" in value or "expression" in value):
            self.problems.append(f"{tag} style={value}")
        if name == "alt":
            self.alts.append(value)
        if name == "id":
            self.ids.append(value)


def check_page(text: str) -> PageCheck:
    """Read a page, and fail where it asks for something, holds a script, or is not well formed."""
    found = PageCheck()
    found.feed(text)
    found.close()
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert found.problems == []
    assert found.open == [], f"never closed: {found.open}"
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(found.tags)
    assert "@import" not in style
    assert "url(" not in style
    assert len(set(found.ids)) == len(found.ids)
    assert set(found.links) <= set(found.ids), set(found.links) - set(found.ids)
    # The policy is the browser's own guard, should anything above be overlooked.
    assert "default-src &#39;none&#39;; img-src data:" in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in style
    return found

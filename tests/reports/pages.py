"""Checks that every page must pass."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from xml.etree import ElementTree


class Page(HTMLParser):
    """Collects headings, texts and images; checks that elements nest and nothing comes from elsewhere."""

    EMPTY = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.texts: list[str] = []
        self.images: dict[str, ElementTree.Element] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object")
        if tag not in self.EMPTY:
            self._open.append(tag)
        values = {key: value or "" for key, value in attrs}
        assert "href" not in values
        if tag == "img":
            head, _, data = values["src"].partition(",")
            assert head == "data:image/svg+xml;base64"
            self.images[values["alt"]] = ElementTree.fromstring(base64.b64decode(data))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self._open[-1] != "style":
            self.texts.append(data.strip())
            if self._open[-1] in ("h1", "h2"):
                self.headings.append(data.strip())
        if self._open and self._open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data

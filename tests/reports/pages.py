"""Checks that every page must pass."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects headings, texts and plots; checks that elements nest, identifiers differ and nothing comes from elsewhere."""

    EMPTY = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.texts: list[str] = []
        self.plots: dict[str, list[str]] = {}
        """Texts in a plot, by its description."""
        self.identifiers: set[str] = set()
        self.links: set[str] = set()
        self._open: list[str] = []
        self._plot: list[str] | None = None
        self.feed(text)
        self.close()
        assert self._open == []
        assert self.links <= self.identifiers

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe", "object", "img", "image")
        if tag not in self.EMPTY:
            self._open.append(tag)
        values = {key: value or "" for key, value in attrs}
        assert "src" not in values
        for key in ("href", "xlink:href"):
            if key in values:
                assert values[key].startswith("#")
                self.links.add(values[key][1:])
        if "id" in values:
            assert values["id"] not in self.identifiers
            self.identifiers.add(values["id"])
        if values.get("role") == "img":
            self._plot = self.plots.setdefault(values["aria-label"], [])

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "svg":
            self._plot = None

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        elif data.strip() and self._plot is not None:
            self._plot.append(data.strip())
        elif data.strip():
            self.texts.append(data.strip())
            if self._open[-1] in ("h1", "h2"):
                self.headings.append(data.strip())

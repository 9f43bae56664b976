"""Reading the pages that the package writes."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Every reference and id, the texts of tables, and whether each element that was opened is closed."""

    VOID = frozenset({"meta", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.labels: list[str] = []
        self.points: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.images = 0
        self.open: list[str] = []
        self._rows: list[list[str]] | None = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        self.images += tag == "img"
        named = dict(attributes)
        self.ids += [named["id"] or ""] if "id" in named else []
        self.labels += [named["aria-label"] or ""] if tag == "svg" and named.get("role") == "img" else []
        self.points += [named["points"] or ""] if tag == "polyline" else []
        if tag == "table":
            self._rows = self.tables.setdefault(named.get("id") or "", [])
        elif self._rows is not None and tag == "tr":
            self._rows.append([])
        elif self._rows is not None and tag in ("td", "th"):
            self._rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Drawings have elements that close themselves."""

    def handle_data(self, data: str) -> None:
        if self._rows and self._rows[-1] and {"td", "th"} & set(self.open):
            self._rows[-1][-1] += data

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "table":
            self._rows = None

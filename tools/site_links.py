"""Links of the built documentation: `python tools/site_links.py docs/_build/html`.

Reads every HTML page and follows each link, picture, script and style sheet: what lies inside the site must
be there, with the anchor that is named, and nothing that a page loads may come from elsewhere. Prints what is
broken; exit status 1 when something is.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Element -> attribute that makes a browser load something.
LOADED = dict.fromkeys(("img", "script", "source", "video", "audio", "iframe"), "src") | {"link": "href"}


class Page(HTMLParser):
    """Anchors of a page, where it links to, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if given.get("rel") not in {"canonical", "author"} and given.get(LOADED.get(tag, "")):
            self.loaded.add(given[LOADED[tag]])


def broken(site: Path) -> list[str]:
    """What is wrong, as lines of text."""
    site = site.resolve()
    pages = {
        path: Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if path.relative_to(site).parts[0] != "_static"  # templates of the theme
    }
    if not pages:
        return [f"no page in {site}"]
    found = []
    for path, page in pages.items():
        here = path.relative_to(site).as_posix()
        found += [f"{here} loads {url} from elsewhere" for url in sorted(page.loaded) if urlsplit(url).netloc]
        for url in sorted(page.links | page.loaded):
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if target.is_dir():
                target /= "index.html"
            if not target.is_file() or not target.is_relative_to(site):
                found.append(f"{here}: {url} is not there")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                found.append(f"{here}: {url} has no such anchor")
    return found


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    found = broken(Path(arguments[0]))
    for line in found:
        print(line)
    print(f"links: {len(found)} broken")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

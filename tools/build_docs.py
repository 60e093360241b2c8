"""Make the reference from docstrings (build/docs); report missing docstrings and broken links.

    tools/lay-out build/laid-out && PYTHONPATH=build/laid-out python tools/build_docs.py

Exit status 1 when something is missing or broken. In the checkout itself the package's folders lie beside
rql_deploy/, which a walk through its files does not understand.
"""

from __future__ import annotations

import importlib
import inspect
import logging
import pkgutil
import re
import sys
import warnings
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "build" / "docs"
WRITTEN_BY_HAND = ("*.md", "docs/**/*.md", "benchmarks/*.md", "clients/*/*.md")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)(?:\s\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"")
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)


def modules() -> Iterator[ModuleType]:
    """Every public module of the package, imported."""
    package = importlib.import_module("rql_deploy")
    yield package
    for found in pkgutil.walk_packages(package.__path__, "rql_deploy."):
        if not any(part.startswith("_") for part in found.name.split(".")):
            yield importlib.import_module(found.name)


def interface_names(found: list[ModuleType]) -> set[str]:
    """Methods that the package's interfaces (Protocol classes) explain, for all classes that have them."""
    names: set[str] = set()
    for module in found:
        for member in vars(module).values():
            if inspect.isclass(member) and getattr(member, "_is_protocol", False):
                names |= {name for name, method in vars(member).items() if inspect.getdoc(method)}
    return names


def undocumented(module: ModuleType, explained: set[str]) -> Iterator[str]:
    """A module's public classes, functions and methods without a docstring of their own or inherited."""
    if not inspect.getdoc(module):
        yield module.__name__
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(member) and not member.__doc__:
            yield f"{module.__name__}.{name}"
        if inspect.isclass(member):
            if not member.__doc__:
                yield f"{module.__name__}.{name}"
            yield from undocumented_methods(module, member, explained)


def undocumented_methods(module: ModuleType, owner: type, explained: set[str]) -> Iterator[str]:
    """Public methods and properties that a class defines and neither it nor an interface explains."""
    for name, member in vars(owner).items():
        function = getattr(member, "__func__", member)  # of class and static methods
        public = not name.startswith("_") and (inspect.isfunction(function) or isinstance(member, property))
        if public and name not in explained and not inspect.getdoc(getattr(owner, name)):
            yield f"{module.__name__}.{owner.__qualname__}.{name}"


class Page(HTMLParser):
    """The links of a page and the places in it that can be linked to."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one tag's."""
        for name, value in attrs:
            if name == "id" and value:
                self.places.add(value)
            if name in ("href", "src") and value:
                self.links.append(value)


def markdown_page(text: str) -> tuple[list[str], set[str]]:
    """Links of a Markdown file and the anchors that hosts make of its headings."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    places: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = next(n for n in range(len(places) + 1) if (f"{slug}-{n}" if n else slug) not in places)
        places.add(f"{slug}-{number}" if number else slug)
    places |= set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    without_code = re.sub(r"`[^`\n]*`", "", text)
    return [first or second for first, second in LINK.findall(without_code)], places


def read(path: Path) -> tuple[list[str], set[str]]:
    """Links and places of a page."""
    if path.suffix == ".md":
        return markdown_page(path.read_text())
    page = Page(path.read_text())
    return page.links, page.places


def broken_links(pages: list[Path]) -> Iterator[str]:
    """Links of these pages to files or places that do not exist; other sites are not asked."""
    known = {page.resolve(): read(page) for page in pages}
    for page, (links, _) in known.items():
        for link in links:
            if (
                not ELSEWHERE.match(link)
                and not link.startswith("//")
                and not leads_somewhere(page, link, known)
            ):
                yield f"{page.relative_to(ROOT)}: {link}"


def leads_somewhere(page: Path, link: str, known: dict[Path, tuple[list[str], set[str]]]) -> bool:
    """Whether the file is there, and the place in it."""
    target, _, place = unquote(link).partition("#")
    file = (page.parent / target).resolve() if target else page
    # Places within the reference are pdoc's own: it lists inherited members that have none.
    if not file.exists() or not place or page.suffix == ".html" or file.suffix != ".md":
        return file.exists()
    return place in (known.get(file) or read(file))[1]


def write_reference() -> None:
    """One page per module, made by pdoc."""
    import pdoc

    # Types of named tuples that are imported for the type checker alone.
    warnings.filterwarnings("ignore", module="pdoc")
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("rql_deploy", output_directory=OUTPUT)


def main() -> int:
    """Do all of it and say what is wrong."""
    logging.disable(logging.WARNING)  # robosuite's, at import
    found = list(modules())
    explained = interface_names(found)
    missing = [name for module in found for name in undocumented(module, explained)]
    write_reference()
    found_by_hand = (page for pattern in WRITTEN_BY_HAND for page in sorted(ROOT.glob(pattern)))
    pages = [page for page in found_by_hand if "node_modules" not in page.parts]
    broken = list(broken_links(pages + sorted(OUTPUT.rglob("*.html"))))
    for name in missing:
        print(f"no docstring: {name}")
    for link in broken:
        print(f"leads nowhere: {link}")
    looked_at = f"{len(found)} modules and {len(pages)} pages"
    print(f"{len(missing)} public names without a docstring, {len(broken)} broken links in {looked_at}")
    return 1 if missing or broken else 0


if __name__ == "__main__":
    sys.exit(main())

"""Builds the site with Zensical: `python .ci/docs FOLDER [--repository URL]`.

A dead link, a name of the package that is no link, and a page that the navigation lacks are errors. With the URL of a
public repository, each page links to its source there.
"""

from __future__ import annotations

import argparse
import html
import html.parser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import griffe
import yaml

import faasrt

HERE = Path(__file__).parent
PACKAGE = Path(faasrt.__file__).parent
EDIT = "edit/main/"
# Names in OpenTelemetry, and a group of entry points. They are no names of Python.
OTHER_NAMES = {f"faasrt.{name}" for name in ("attempt_started", "call_id", "language", "outcome", "protocols")}
# The classes of the variables in examples.
VARIABLES = {"manager": "RuntimeManager", "runtime": "Runtime", "session": "Session", "result": "ExecutionResult"}


def pages_of(nav: Any) -> Iterator[tuple[str, str]]:
    """Yield the title and the path of each page of the navigation. Pages of the guide have their titles in the text."""
    for entry in nav:
        for title, content in entry.items() if isinstance(entry, dict) else [("", entry)]:
            if isinstance(content, str):
                yield title, content
            else:
                yield from pages_of(content)


def write_reference(pages: list[tuple[str, str]], folder: Path) -> dict[str, str]:
    """Write the pages that are made from the package. Return the source of each, relative to the checkout."""
    package = griffe.load("faasrt", search_paths=[PACKAGE.parent], resolve_aliases=True)
    names = {Path(path).stem for _, path in pages}
    sources = {}
    for title, path in pages:
        kind, _, name = path.removesuffix(".md").partition("/")
        if kind == "reference":
            target = package[name.removeprefix("faasrt.")] if name != "faasrt" else package
            text, source = content_of(package, title, target, names), target.filepath
        elif kind == "examples":
            source = (PACKAGE / path).with_suffix(".py")
            text = f"# {title}\n\n```python\n{source.read_text()}```\n"
        else:
            continue
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)
        sources[path] = source.relative_to(PACKAGE.parent).as_posix()
    return sources


def content_of(package: griffe.Module, title: str, target: griffe.Object | griffe.Alias, names: set[str]) -> str:
    """Return what mkdocstrings renders for a class, or for a module with its names that have no other page."""
    if not target.is_module:
        return f"::: {target.path}\n    options: {{heading_level: 1}}\n"
    modules = {f"faasrt.{name}": package[name].canonical_path.rpartition(".")[0] for name in package.exports}
    if target is package:
        members = [name for name, module in modules.items() if module not in names]
    else:
        members = [name for name, module in modules.items() if module == target.path]
        members.sort(key=lambda name: package[name[7:]].lineno or 0)
        exported = [f"{target.path}.{name}" for name in target.exports or ()]
        paths = {package[name].canonical_path for name in package.exports}
        members += [name for name in dict.fromkeys(exported) if package[name[7:]].canonical_path not in paths]
    options = "    options: {members: false, show_root_heading: false, show_root_toc_entry: false}\n"
    directives = [f"\n::: {name}\n" for name in members if name not in names]
    return f"# {title}\n\n::: {target.path}\n{options}" + "".join(directives)


def configure(work: Path, repository: str) -> Path:
    """Write the configuration of one build."""
    config = yaml.safe_load((HERE / "mkdocs.yml").read_text())
    if repository:
        config["repo_url"] = repository
    [python] = [
        plugin["mkdocstrings"]["handlers"]["python"] for plugin in config["plugins"] if "mkdocstrings" in plugin
    ]
    python["paths"] = [str(PACKAGE.parent)]
    python["options"]["extensions"] = [f"{HERE / 'public_api.py'}:PublicAPI"]
    path = work / "mkdocs.yml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


class Page(html.parser.HTMLParser):
    """The anchors and the links of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect ids and targets."""
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in ("href", "src") and value:
                self.links.add(value)


def find_targets(folder: Path) -> dict[str, str]:
    """Return where each name of the package is on the site."""
    targets = {f"faasrt.examples.{path.stem}": f"examples/{path.name}" for path in folder.glob("examples/*.html")}
    for path in folder.glob("reference/*.html"):
        page = path.relative_to(folder).as_posix()
        anchors = {anchor for anchor in Page(path.read_text()).anchors if anchor.startswith("faasrt.")}
        targets |= {anchor: f"{page}#{anchor}" for anchor in anchors} | {path.stem: page}
    targets["faasrt.__all__"] = targets.pop("faasrt")  # in the text, this is the command
    for name, target in list(targets.items()):
        start, _, rest = name.removeprefix("faasrt.").partition(".")
        if start in faasrt.__all__:
            targets[name.removeprefix("faasrt.")] = target
            targets |= {f"{variable}.{rest}": target for variable, kind in VARIABLES.items() if kind == start and rest}
    return targets


def titles_of(folder: Path) -> dict[str, str]:
    """Return the titles of the pages of the guide, by the paths that docstrings name."""
    return {f"faasrt/docs/{path.name}": path.read_text().partition("\n")[0].strip("# ") for path in folder.glob("*.md")}


def link_names(page: Path, text: str, targets: dict[str, str], titles: dict[str, str]) -> tuple[str, set[str]]:
    """Link the names and the pages in the text of a page. Return the new text, and the names without a target."""
    up = "../" * (len(page.parts) - 1)
    unknown = set()

    def link(match: re.Match[str]) -> str:
        code = match[1]
        if code is None:
            return match[0]
        name = html.unescape(code).partition("(")[0]
        target = targets.get(name) or (name[:1].isupper() and targets.get(f"{page.stem}.{name}"))  # of this module
        if target:
            return f'<a href="{up}{target}">{match[0]}</a>'
        if name in titles:
            stem = Path(name).stem.replace("README", "index")
            return f'<a href="{up}{stem}.html">{html.escape(titles[name])}</a>'
        if re.fullmatch(r"faasrt(\.\w+)+|faasrt/docs/.*", name) and name not in OTHER_NAMES:
            unknown.add(name)
        return match[0]

    return re.sub(
        r"(?s)<(?:a|pre|h[1-6]|title)\b.*?</(?:a|pre|h[1-6]|title)>|<code>([^<]+)</code>", link, text
    ), unknown


def dead_links(folder: Path) -> list[str]:
    """Return the links to a missing file or anchor."""
    pages = {path: Page(path.read_text()) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
            known = pages[target].anchors if target in pages else set()
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in known):
                dead.append(f"{path.relative_to(folder)}: {link}")
    return sorted(dead)


def orphans(folder: Path, nav: list[tuple[str, str]]) -> list[str]:
    """Return the pages that the navigation lacks."""
    pages = {path.relative_to(folder).as_posix() for path in folder.rglob("*.md")}
    return [f"{page} is not in the navigation" for page in sorted(pages - {path for _, path in nav})]


def finish(folder: Path, sources: dict[str, str]) -> list[str]:
    """Link the names of the package on all pages, and each page to its source. Return what is wrong."""
    targets, titles = find_targets(folder), titles_of(PACKAGE / "docs")
    problems = []
    for path in folder.rglob("*.html"):
        page = path.relative_to(folder)
        text, unknown = link_names(page, path.read_text(), targets, titles)
        source = page.with_suffix(".md").as_posix()
        if source in sources:
            text = text.replace(f'/{EDIT}faasrt/docs/{source}"', f'/{EDIT}{sources[source]}"')
        path.write_text(text)
        problems += [f"{page}: `{name}` is not on the site" for name in sorted(unknown)]
    return [*problems, *dead_links(folder)]


def build(folder: Path, repository: str = "") -> list[str]:
    """Write the site. Return what is wrong with it."""
    nav = list(pages_of(yaml.safe_load((HERE / "mkdocs.yml").read_text())["nav"]))
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shutil.copytree(PACKAGE / "docs", work / "docs")
        shutil.copy(HERE / "extra.css", work / "docs")
        sources = write_reference(nav, work / "docs")
        problems = orphans(work / "docs", nav)
        command = [sys.executable, "-m", "zensical", "build", "--strict", "-f", str(configure(work, repository))]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        output = re.sub(r"\x1b\[[\d;]*m", "", done.stdout + done.stderr)
        if done.returncode:
            return [output]
        (work / "site/404.html").unlink()  # its links are those of a site at the root of a server
        shutil.rmtree(folder, ignore_errors=True)
        shutil.move(work / "site", folder)
    # Docstrings may describe several parameters at once, which Griffe does not know.
    problems += [line for line in output.splitlines() if re.match(r"griffe: (?!.* '\w+, )", line)]
    return problems + finish(folder, sources)


def main() -> None:
    """Build the site, and report problems."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repository", default="", help="such as https://github.com/OWNER/faasrt")
    options = parser.parse_args()
    if problems := build(options.folder, options.repository):
        sys.exit("\n".join(problems))
    print(f"{options.folder}/index.html")


if __name__ == "__main__":
    main()

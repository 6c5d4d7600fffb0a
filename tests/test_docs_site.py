"""The documentation as a site: builds without a warning, holds every page, and loads nothing from another host."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import ROOT, child_env


class Addresses(HTMLParser):
    """What a page loads by itself, and where its links lead."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if tag == "a":
            self.links += [found["href"]] if "href" in found else []
        else:  # scripts, styles, fonts, icons, pictures, frames
            self.loads += [found[name] for name in ("src", "href", "srcset", "data", "poster") if name in found]
        self.loads += re.findall(r"url\(([^)]*)\)", found.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.get_starttag_text() == "<style>":
            self.loads += re.findall(r"url\(([^)]*)\)", data)


def elsewhere(address: str) -> bool:
    return bool(urlsplit(address.strip("'\" ")).netloc)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    env = child_env(NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # strict: a dead link, a page outside of the navigation
    assert "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Addresses]:
    return {page: Addresses(page) for page in site.rglob("*.html")}


def test_every_page_is_in_the_navigation_once(site: Path) -> None:
    named = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert len(named) == len(set(named))
    assert {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").rglob("*.md")} <= set(named)
    home = Addresses(site / "index.html").links
    assert all((ROOT / name).exists() for name in named)
    for page in ("first-run.html", "recipes/index.html", "CONTRIBUTING.html"):
        assert page in home


def test_no_page_loads_anything_from_another_host(site: Path, pages: dict[Path, Addresses]) -> None:
    assert len(pages) > 30
    assert any("bundle" in address for address in pages[site / "index.html"].loads)  # the parser sees scripts
    assert [(p.name, a) for p, found in pages.items() for a in found.loads if elsewhere(a)] == []
    # GitHub draws them; the theme would fetch a library from another host, and without it shows their source.
    assert [p.name for p in (ROOT / "docs").glob("*.md") if "```mermaid" in p.read_text()] == []
    styles = [p for p in site.rglob("*.css") if re.search(r"(url\(|@import\s)['\"]?(https?:)?//", p.read_text())]
    assert styles == []


def test_links_lead_to_files_of_the_site(site: Path, pages: dict[Path, Addresses]) -> None:
    """Also those to the repository's files outside docs/: recipes, the licence, the notebook."""
    assert "zephyr-7b/config_full_zero3.yaml" in pages[site / "recipes/index.html"].links
    for page, found in pages.items():
        if page.name == "404.html":  # served for any address: its links start at the site's top
            continue
        for link in (urlsplit(a) for a in found.links if not elsewhere(a)):
            assert link.scheme == ""
            assert not link.path or (page.parent / unquote(link.path)).is_file(), (page.name, link.path)


def code_of(page: Path) -> list[str]:
    """Lines of code blocks, and code inside of sentences."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()] + re.findall(r"`([^`\n]+)`", text)


PAGES = sorted((ROOT / "docs").glob("*.md")) + [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "recipes/README.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_and_options_that_a_page_names_exist(page: Path) -> None:
    from flows.cli import app
    from preftune.known_keys import specs
    from preftune.schema import Recipe

    keys = {*specs(), *Recipe.model_fields, "dataset_mixture"}
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for code in code_of(page):
        if found := re.match(r"make ([a-z-]+)", code):
            assert found[1] in targets, code
        if not (found := re.match(r"(?:\.venv/bin/)?preftune((?:\s+[a-z-]+)+)(.*)", code)):
            continue
        command = app
        for number, name in enumerate(found[1].split()):
            assert number or name in command, code
            if name not in command:  # an argument in small letters
                break
            command = command[name]
        options = {n for argument in command.assemble_argument_collection() for n in argument.names} | {"--help"}
        for option in re.findall(r"\s--([a-z][\w.-]*)", found[2].partition(" #")[0]):
            assert f"--{option}" in options or ("OVERRIDES" in options and option.split(".")[0] in keys), code

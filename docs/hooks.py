"""Hooks of MkDocs: README and other files of the repository become pages and files of the site.

Links follow the repository, so that they work on GitHub too; here they are rewritten for the
site. MkDocs itself reports those that lead nowhere.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).parents[1]
README = "README.md"
PAGES = (README, "CHANGELOG.md", "CONTRIBUTING.md", "studies/README.md")
# the target of a Markdown link or of an <img>, without its anchor; not one with a scheme
LINK = re.compile(r"""(?<=\]\()(?![a-z]+:|#)[^)#\s]+|(?<=src=")(?![a-z]+:)[^"]+""")


def in_site(path: str) -> str:
    """Return where a file of the repository is in the site."""
    return "index.md" if path == README else path.removeprefix("docs/")


def in_repository(page: str) -> str:
    """Return which file of the repository a page of the site is made from."""
    return next((path for path in PAGES if in_site(path) == page), f"docs/{page}")


def targets(path: str) -> list[str]:
    """Return the files of the repository that a Markdown file links to."""
    text = (REPOSITORY / path).read_text("utf-8")
    return [posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
            for link in LINK.findall(text)]  # fmt: skip


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are outside docs/, and the files that any page links to."""
    pages = [*PAGES, *(in_repository(file.src_uri) for file in files.documentation_pages())]
    linked = {target for page in pages for target in targets(page)}
    for path in sorted({*PAGES, *linked}):
        source = REPOSITORY / path
        if source.is_file() and in_site(path) not in files.src_uris:
            files.append(File.generated(config, in_site(path), abs_src_path=str(source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite the links of a page from the repository's paths to the site's."""
    here = page.file.src_uri
    folder = posixpath.dirname(in_repository(here))

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[0]))
        return posixpath.relpath(in_site(target), posixpath.dirname(here) or ".")

    return LINK.sub(rewrite, markdown)

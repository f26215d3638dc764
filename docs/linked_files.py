"""What the pages link to outside of docs/, for the site: files are taken along, of folders the text stays.

On GitHub `../benchmarks/results/drift.csv` is a link in the tree. A site has nothing above its pages, so the file
becomes `repository/benchmarks/results/drift.csv` there; where `repo_url` is set in mkdocs.yml, code is linked to it.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A link or an image whose target climbs out of docs/: its "!", its text, its path from the root, its anchor.
OUTSIDE = re.compile(r"(!?)\[([^\]]*)\]\((?:\.\./)+(?!decisions/|lab/)([\w./-]+)(#[^)]*)?\)")
README = "README.md"


def on_files(files, config):
    """Add the files that pages link to, but none of Markdown, which would become a page."""
    from mkdocs.structure.files import File

    pages = [file for file in files if file.is_documentation_page()]
    linked = {match[3] for page in pages for match in _links(page) if (ROOT / match[3]).is_file()}
    for path in sorted(linked - {README}):
        files.append(File.generated(config, f"repository/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links at what stands in the site."""
    up = "../" * page.file.src_uri.count("/")

    def pointed(match):
        kind, text, path, _ = match.groups()
        if not _is_outside(page.file, match):
            return match[0]
        if not (ROOT / path).exists():
            return f"{kind}[{text}]({up}repository/{path})"  # which the strict build reports
        if path == README:
            return f"[{text}]({up}index.md)"
        if config.repo_url and not kind:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return f"{kind}[{text}]({up}repository/{path})" if (ROOT / path).is_file() else text

    return OUTSIDE.sub(pointed, markdown)


def _links(file):
    return (match for match in OUTSIDE.finditer(file.content_string) if _is_outside(file, match))


def _is_outside(file, match):
    """Whether as many steps up are climbed as lead out of docs/: from docs/lab/ it takes two."""
    return match[0].count("../") > file.src_uri.count("/")

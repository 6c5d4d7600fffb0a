"""A hook of mkdocs: the site is made of the repository's files under their own paths.

So a link like `../recipes/README.md` means the same file on the site as on GitHub. Pages of docs/ stand at the site's
top; files that are no pages (recipes, the notebook, the licence) are copied as they are.
"""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PATTERNS = (
    "docs/**/*",
    "recipes/README.md",
    "recipes/starter/pairs/README.md",
    "recipes/**/*.yaml",
    "benchmarks/README.md",
    "automations/*.yaml",
    "notebooks/*.ipynb",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
)


def on_files(files: Files, config: Any) -> Files:
    """Replaces what mkdocs found in docs/; the theme's own files, which come from elsewhere, stay."""
    site = [f for f in files if not Path(f.abs_src_path or "").is_relative_to(ROOT / "docs")]
    for path in sorted({p for pattern in PATTERNS for p in ROOT.glob(pattern) if p.is_file()}):
        name = path.relative_to(ROOT).as_posix()
        file = File(name, str(ROOT), config.site_dir, use_directory_urls=False)
        file.dest_uri = file.dest_uri.removeprefix("docs/")
        site.append(file)
    return Files(site)

"""Hook of the documentation build: links to files of the repository lead to the repository."""

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"\]\((\.\./[^)#\s]+)((?:#[^)\s]*)?)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn relative links that leave `docs/` into addresses in the repository.

    Raises:
        FileNotFoundError: A link leads to a file that does not exist.
    """

    def absolute(match: re.Match[str]) -> str:
        target = posixpath.normpath(
            posixpath.join("docs", posixpath.dirname(page.file.src_uri), match[1])
        )
        if target.startswith("docs/"):
            return match[0]
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{page.file.src_uri} links to {target}, which does not exist")
        return f"]({config['repo_url']}/blob/main/{target}{match[2]})"

    return _LINK.sub(absolute, markdown)

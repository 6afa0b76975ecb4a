"""Print the lowest version that pyproject.toml declares of each dependency, as pip's constraints.

    python tests/lowest_versions.py > lowest.txt && pip install -c lowest.txt '.[dev]'

torch is left out: `make` installs it by itself, first.
"""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def lowest_versions(pyproject: str) -> list[str]:
    """`name==version` for every `name[extras]>=version` of the core and the users' extras."""
    project = tomllib.loads(pyproject)["project"]
    extras = {**project["optional-dependencies"], "dev": [], "docs": []}
    wanted = [*project["dependencies"], *(item for extra in extras.values() for item in extra)]
    matches = (re.match(r"([\w.-]+)(?:\[[^\]]*\])?>=([\w.]+)", item) for item in wanted)
    return sorted({f"{m[1]}=={m[2]}" for m in matches if m and m[1] != "torch"})


if __name__ == "__main__":
    print("\n".join(lowest_versions((ROOT / "pyproject.toml").read_text(encoding="utf-8"))))

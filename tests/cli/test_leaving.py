"""The command line leaves without walking over all that it had loaded."""

from __future__ import annotations

import subprocess
import sys


def test_what_lives_at_the_end_is_not_searched_for_garbage() -> None:
    program = (
        "import atexit, gc, sys; from pixellm.cli.main import main; "
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000)); "
        "sys.argv = ['pixellm', 'version']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "True"

"""``pixellm`` and ``python -m pixellm``: the command line, in a process of its own."""

import atexit
import sys

from pixellm.cli.console import end_at_once
from pixellm.cli.main import main


def run() -> None:
    """Entry point of the ``pixellm`` command."""
    # Another program that runs this module goes on afterwards, and has an exit code of its own.
    if getattr(sys.modules["__main__"], "run", None) is run:
        atexit.register(end_at_once)  # the first, and so the last to be called
    main()


if __name__ == "__main__":
    run()

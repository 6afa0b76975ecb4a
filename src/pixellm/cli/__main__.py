"""``python -m pixellm.cli``: the command line under its older module name."""

from pixellm.cli.main import main

if __name__ == "__main__":
    main()

"""``python -m pixellm``: the command line."""

from pixellm.cli.main import main

if __name__ == "__main__":
    main()

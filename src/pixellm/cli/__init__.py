"""The command line, one module per noun; ``main`` holds the app, ``console`` what all share."""

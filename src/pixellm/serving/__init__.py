"""The server: one engine behind HTTP, and a page to try it on.

``app`` puts it together; ``worker`` is the engine's one thread, ``service`` what is asked of it,
``schemas`` what goes over the wire, ``guard`` the limits around every request, ``remote`` images
from elsewhere, ``server`` sockets and signals.
"""

"""Scenes: an endless, exact, offline data set that the project draws itself (extra ``scenes``).

``dataset`` ties the parts together: ``knowledge`` (what objects are), ``artwork`` and
``backgrounds`` (what they look like), ``draw`` (where they lie), ``questions`` (what is asked),
``export`` (files to look at). Import from those modules; this one imports nothing.
"""

"""Readers of public segmentation data sets, in the layouts that people have on disk.

Each reader turns one data set into :class:`pixellm.types.Sample`; ``base`` says what all of them
promise. Import from the modules, or open a reader by name with ``pixellm.data.registry``; this
one imports nothing.
"""

"""Data sets that yield :class:`pixellm.types.Sample`, and the collation into batches."""

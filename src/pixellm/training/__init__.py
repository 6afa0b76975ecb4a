"""Training: from a recipe to a run folder. Import the modules by name; this file loads nothing."""

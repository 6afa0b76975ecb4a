"""How fast, how far from what the machine allows, and against what: measured, never asserted."""

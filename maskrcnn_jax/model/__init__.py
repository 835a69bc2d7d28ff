"""Everything that has parameters."""

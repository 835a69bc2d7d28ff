"""Tool: finds the faults of a data set before a training does."""

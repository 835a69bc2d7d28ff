"""Tool: finds out what is wrong with a data set before a training does."""

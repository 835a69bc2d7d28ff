"""Evaluates a model on a data set: AP of detections, recall of proposals."""

"""Evaluation: detections of a data set, their AP, recall of proposals."""

"""Repairs the annotations of a COCO file, for `check_data --fix`."""

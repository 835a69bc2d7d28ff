"""Tool: writes a COCO-format set as a tensorflow-datasets set."""

"""Tool: converts annotations of other programs to COCO JSON."""

"""Tool: converts annotations of VIA, LabelMe or mask PNGs to COCO JSON."""

"""Tool: writes annotations of VIA, LabelMe or mask pictures as COCO JSON."""

"""Operations on boxes, masks and features: one image, no parameters."""

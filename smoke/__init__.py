"""Running an image the way production would, and judging what it did."""

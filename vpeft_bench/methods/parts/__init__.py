"""Building blocks that a method file is too small for, or that several methods share."""

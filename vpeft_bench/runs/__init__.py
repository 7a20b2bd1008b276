"""A run from its configuration to its record, alone or in a sweep."""

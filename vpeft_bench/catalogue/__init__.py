"""What the methods are, told to a reader: the listing, their pages, and what probing them shows."""

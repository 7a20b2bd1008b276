"""What is written about a run or a measurement, and read again: strict, versioned files."""

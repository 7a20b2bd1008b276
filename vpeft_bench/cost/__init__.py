"""What a method costs: parameters, bytes, operations, time, memory, energy, by one protocol."""

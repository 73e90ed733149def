"""Which runs are wanted, what they cost, and where they are made: here, or through a queue."""

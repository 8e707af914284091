"""What a recorded profile says: where the time of the steps went."""

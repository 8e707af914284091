"""What a training needs, computed from the model's configuration: memory, and about how much time. No torch."""

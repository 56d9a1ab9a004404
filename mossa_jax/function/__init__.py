"""What a model does with its layers: its answers."""

"""The model: architecture, stacked-layer Llama, attention, adapters, and their files."""

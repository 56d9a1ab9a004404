"""Models and adapters as files: Hugging Face and PEFT folders, in and out."""

"""Models and adapters as files: Hugging Face and PEFT folders, in and out.

Read in this order:

1. `locate`: finds the files of a folder or hub id
2. `tensors`: parts of tensors out of safetensors files, and new files
3. `weights`: weights between Hugging Face folders and the mesh
4. `load`: a model, ready to run; `base`: what a run needs of its base model before the weights
5. `peft_config`, `peft`: PEFT's adapter folders
6. `merge`: an adapter merged into its base model
"""

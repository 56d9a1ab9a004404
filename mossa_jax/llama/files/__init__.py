"""Models and adapters as files: Hugging Face and PEFT folders, in and out.

Read in this order:

1. `locate`: finds the files of a folder or hub id
2. `tensors`: parts of tensors out of safetensors files, and new files
3. `weights`: weights between Hugging Face folders and the mesh
4. `load`: a model, ready to run; `base`: what a run needs of its base model before the weights
5. `peft`: PEFT's adapter folders; `peft_config`, `peft_modules`, `peft_tensors`, `name_patterns`: what they may say
6. `adapted`: a base model with an adapter that brings weights of its own; `merge`: an adapter merged into its base
"""

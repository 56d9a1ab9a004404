"""The Llama family: its architecture and model, attention, LoRA adapters, decoding, and their files.

Read in this order:

1. `architecture`: sizes and constants, read from a Hugging Face config.json; `published`: those of known models
2. `rope`: rotary position embeddings
3. `blockwise`, `splash`, `attention`: two bodies of attention, and the one door that chooses among them
4. `adapters`: LoRA adapters as a pytree of their own, stacked over models; `updates`: what they add to the weights
5. `layers`: the modules of a block; `model`: the scan over stacked blocks
6. `placement`: where the leaves of the model's state live on a mesh
7. `generate`: greedy decoding with a key/value cache
8. `files`: Hugging Face and PEFT folders, in and out
"""

"""Tuning: E, the control models and the miniature base, from packed rows to adapters or full models.

In the order in which to read it:

- `loss`: cross-entropy on answer tokens, with a head that runs by chunks.
- `optimizer`: AdamW and Adafactor, with a schedule whose length may differ between models.
- `batch`: a batch on the devices, and its micro-batches.
- `guards`: updates that are not finite are skipped; loss spikes are counted.
- `population`: the step of many adapters over one frozen base, one jitted program.
- `members`, `slots`, `roster`: what each model learns from; which model is trained in which slot and when.
- `data_figures`: what a suite's data give each model to learn from, and what would spoil a result.
- `snapshots`: after how many steps a model's adapter is kept on its way.
- `checkpoints`, `loop`: a state that can be trusted after any kill; the loop from the newest one to the last step.
- `slot_arrays`, `curves`, `population_run`: one group's training, and the export of models that are done.
- `full_finetuning`: all parameters of one model, sharded over the mesh.
- `pretrain`: the miniature base model of the embedded suite.
- `flops`: FLOPs of a step by formula.
"""

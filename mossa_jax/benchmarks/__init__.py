"""Measures this package beside the tools and procedures in common use: speed, memory, and errors of the values.

Nothing here takes part in a run. `launch.bench_cka`, `launch.bench_tuning`, `launch.bench_forward` and
`launch.bench_token` print the tables and save the records, `launch.bench_device` those of one visit to a GPU or TPU.
Other tools take part if they are installed.

The files, in the order in which to read them:

- `machine`: the machine that measurements are made on, and its peak.
- `measuring`: time of several calls in turns, and peak memory of one call.
- `plain_cka`: linear CKA written out plainly, float64 oracles included.
- `cka_tools`: the tools that compute CKA of states in memory.
- `ready_states`: speed and memory of these tools.
- `numerical_traps`: their answers where CKA in floating point goes wrong.
- `random_models`: random Llamas and prompts for the measurements below.
- `end_to_end`, `end_to_end_by_hand`, `end_to_end_tools`: from two models and token ids to CKA.
- `shared_prefix`: the time that a shared prefix saves.
- `comparison_overhead`: the time that the comparison adds to bare forward passes.
- `layer_profiles`: the time of a layer profile beside plain passes over the same tokens.
- `forward`: the forward pass against transformers.
- `token_cost`, `token_programs`, `traced_kinds`: the cost of a token in each program of a run, and where its time goes.
- `tuning`, `tuning_sides`, `tuning_data`: tuning against PEFT.
- `device`: one visit to a GPU or TPU; its head names the files that begin with `device_`.
"""

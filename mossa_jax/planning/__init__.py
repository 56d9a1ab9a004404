"""Plans a run for hardware that need not be here: whether it fits, and what it takes in hours and money.

Nothing runs and no weights are needed. Programs for TPU slices and GPU clusters are compiled from shapes and shardings
alone. Without a compiler for GPUs, these are planned by formula.

The files, in the order in which to read them:

- `hardware`: TPU slices and GPU clusters, known by name.
- `gpu_targets`: what the compiler for GPUs must know of a GPU that is not here.
- `workload`: how many models, steps and prompts a run has.
- `sizes`: the sizes that a program is compiled for.
- `programs`: the programs of a run, and what their compiler says about memory and transfers.
- `collectives`: transfers between chips, read from a compiled program's text.
- `formulas`: the same figures without a compiler.
- `stages`: the five stages of a run, each with its program, its formulas and how often it runs.
- `forecast`: memory, hours and money per stage, and their sums.
- `suggest`: the mesh and the slots that take the fewest hours.
- `plan_table`: a plan as a table for the terminal.
- `prices`: list prices of chips.
- `measured`, `extrapolate`: what a finished pilot measured, and what it says about a larger run.
- `measured_table`: that forecast as a table.
"""

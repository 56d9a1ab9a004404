"""The vocabulary of a run: a dataclass per stage, and each field with its unit, its default and the default's origin.

The dataclasses are plain, not frozen, so that `--config.tuning.rank=16` can override any field. The docstring below a
field is its help: `reference.py` reads it for the command line and for the documentation.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

MINIATURE = "miniature"
PRETRAINED, TUNED = "pretrained", "tuned"
"""Names of the experimental models: the base model itself, and E, trained on the mixture."""

Suite = Literal["miniature", "flan2021", "folder", "natural_instructions", "hub"]
Selection = Literal["paper", "flan62", "all69"]
TestOrder = Literal["sample", "first"]
Mixture = Literal["capped", "proportional", "equal"]
Template = Literal["none", "llama2", "chat"]
Truncation = Literal["keep_end", "paper"]
Method = Literal["lora", "full"]
Optimizer = Literal["adamw", "adafactor"]
Target = Literal[
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj"
]
Pool = Literal["last", "mean", "all"]
Engine = Literal["auto", "kept", "moments"]
Dtype = Literal["float32", "bfloat16"]
Tracker = Literal["tensorboard", "wandb"]

SELECTIONS: tuple[str, ...] = get_args(Selection)
TEMPLATES: tuple[str, ...] = get_args(Template)
OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)
POOLS: tuple[str, ...] = get_args(Pool)
DTYPES: tuple[str, ...] = get_args(Dtype)

REMAT = {"auto": None, "on": True, "true": True, "off": False, "false": False}
"""Words for `tuning.remat` -> whether blocks are recomputed; None decides by memory."""


@dataclass
class Columns:
    """Names of the columns, or JSON fields, of a table of examples."""

    inputs: str = "inputs"
    """Column of the prompts."""
    targets: str = "targets"
    """Column of the answers."""
    task: str = "task"
    """Column of the task that a row belongs to, read with suite `hub` only; empty: all rows are one task."""
    cluster: str = "cluster"
    """Column of the cluster, read with suite `hub` only; optional there."""
    template: str = "template"
    """Column of a whole number that says which instruction template made the row; optional."""
    item: str = "item"
    """Column of a text or whole number that rows share which belong together beside their template: questions about one
    passage, one row in several wordings; optional. Without it, items are guessed from long texts that rows share."""


@dataclass
class Tasks:
    """Which tasks, where their rows come from, and how many rows of each."""

    suite: Suite = "miniature"
    """Source of the tasks: `miniature` (embedded), `flan2021` (from `sources`), `folder` (JSONL or Parquet files in
    `folder`), `natural_instructions` (Super-NaturalInstructions JSON files in `folder`) or `hub` (one data set, in
    `sources`)."""
    folder: str = ""
    """With suite `folder`: a folder with `<split>/<task>.jsonl` or `.parquet` and, optionally, `tasks.json` with
    clusters. With suite `natural_instructions`: a folder of its JSON files."""
    selection: Selection = "paper"
    """With suite `flan2021`: `paper` (60 tasks, and seven of Misc. held out), `flan62` (FLAN's own count), `all69`."""
    sources: tuple[str, ...] = ()
    """Hub data sets (`org/name` or `org/name@revision`) or folders of the same layout; a task of FLAN 2021 is taken
    from the first source that has it. Empty: `Muennighoff/flan`, which lacks newsroom, winogrande and xsum."""
    subset: str = ""
    """With suite `hub`: the data set's configuration, if it has several."""
    columns: Columns = field(default_factory=Columns)
    """Names of the columns in a folder or data set."""
    test_share: float = 0.1
    """Share of the rows, picked by their text, that become test prompts if the source has no test split; 0 to 1."""
    only: tuple[str, ...] = ()
    """Names of the tasks or clusters to keep; empty keeps all."""
    held_out: tuple[str, ...] = ("suite",)
    """Tasks or clusters that E never sees. `("suite",)` takes the suite's own; `()` holds none out."""
    allow_missing: bool = False
    """Continue without tasks that no source has, and list them in the report; otherwise they are refused."""
    allow_bad_rows: bool = False
    """Leave out rows that are no usable example, and count them; otherwise they are refused."""
    max_train: int = 30_000
    """Training rows per task, the first ones. 30,000 is FLAN 2021's own cap per data set."""
    max_test: int = 10_000
    """Test prompts per task. 10,000 as in the authors' runs."""
    test_order: TestOrder = "sample"
    """Which test prompts are taken: `sample` (drawn by the run's seed, in random order, so that the first ones are a
    sample too) or `first` (the first ones, in the source's order)."""
    mixture: Mixture = "capped"
    """Rows that each task gives to E: `capped` (all it has, under `max_per_cluster`, our reading of the authors'
    runs), `proportional` (by size, no task counted above `max_rate`) or `equal`."""
    max_per_cluster: int = 50_000
    """With mixture `capped`: rows that one cluster may give. 50,000 as in the authors' runs."""
    max_rate: int = 3_000
    """With mixture `proportional`: rows beyond which a task does not count more. 3,000 is FLAN 2021's."""
    mixture_rows: int = 0
    """With mixture `proportional` or `equal`: examples in total; 0 takes as many as possible without repeating one."""


@dataclass
class Tokens:
    """From text to rows of token ids."""

    template: Template = "none"
    """Prompt template: `none`, `llama2` (with the default system prompt, as the authors) or `chat` (the tokenizer's
    own)."""
    max_tokens: int = 1024
    """Most positions that a prompt and its answer take together. 1024 as in the authors' runs."""
    truncation: Truncation = "keep_end"
    """Part that a prompt loses if it is too long: `keep_end` cuts the beginning of its content, `paper` its right end,
    as in the authors' runs."""
    row_length: int = 1024
    """Positions of a packed row."""
    share_prefix: bool = True
    """Process the token ids that all prompts of a model's rows begin with (template, system prompt, instruction) once
    per packed row, if they are more than 15 % of its tokens. The loss of an example is the same; a row holds more."""
    long_row_length: int = 0
    """Positions of the rows for examples that do not fit `row_length`; 0: everything fits, as `max_tokens` is no
    larger."""


@dataclass
class Schedule:
    """What is tuned in one family of models, for how long and how fast."""

    method: Method = "lora"
    """`lora`: an adapter over the frozen base, exported as a PEFT folder; `full`: every parameter, one model after
    the other, each exported as a model folder."""
    optimizer: Optimizer = "adamw"
    """With method `full`: `adamw`, or `adafactor` to save memory (12 bytes per parameter instead of 16)."""
    epochs: float = 3.0
    """Passes over the model's own rows. 3 as in the authors' runs."""
    max_steps: int = 0
    """Upper bound on optimizer steps; 0 means none."""
    batch_rows: int = 16
    """Packed rows per step and model."""
    parts: int = 1
    """Micro-batches into which the rows of a step are split to save memory; must divide `batch_rows`."""
    learning_rate: float = 5e-5
    """Peak learning rate, decayed to zero by a cosine. 5e-5 as in the authors' runs."""


@dataclass
class Tuning:
    """LoRA, and the optimizer of every model; defaults are the authors' (rank 8, alpha 16, q and v)."""

    rank: int = 8
    """Rank of the adapters. 8 as in the authors' runs."""
    alpha: float = 16.0
    """Scale of the adapters: an update is multiplied by alpha / rank. 16 as in the authors' runs."""
    targets: tuple[Target, ...] = ("q_proj", "v_proj")
    """Projections with an adapter: any of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj; of Phi 3,
    qkv_proj, o_proj, gate_up_proj, down_proj. q and v as in the authors' runs."""
    first_layer: int = 0
    """First block with an adapter; the blocks below keep the base model's states exactly."""
    control: Schedule = field(default_factory=Schedule)
    """Schedule of the control models."""
    experimental: Schedule = field(default_factory=Schedule)
    """Schedule of E."""
    slots: int = 64
    """Adapters of controls that are trained at once, in one program; a slot whose model is finished takes the next."""
    seeds: int = 1
    """Models of E, each with its own seed (`tuned`, `tuned.seed1`, ...)."""
    control_seeds: int = 2
    """Models of each control of `seeded`, each with its own seed (`TASK`, `TASK.seed1`, ...): they show the ceiling of
    similarity and the noise between seeds. 1 for none."""
    seeded: tuple[str, ...] = ("one_per_cluster",)
    """Tasks whose controls get `control_seeds`: names of tasks and clusters, `all`, or `one_per_cluster`, the first
    task of each cluster (of the mixture, if the cluster has any there)."""
    twins: tuple[str, ...] = ("one_per_cluster",)
    """Tasks that get a twin (`TASK.twin`), a control that learns permuted answers: it knows the format and the answers,
    but not the link. The same words as in `seeded`; empty for none."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from zero; 0 to 1."""
    beta1: float = 0.9
    """Decay per step of Adam's mean of the gradients."""
    beta2: float = 0.999
    """Decay per step of Adam's mean of the squared gradients."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    clip: float = 1.0
    """Largest global gradient norm of a model; larger gradients are scaled down to it."""
    remat: str = "auto"
    """Recompute the inside of blocks in the backward pass, a third more work for far less memory: `on` (or True),
    `off` (or False), or `auto`: only if the compiled step does not fit the device otherwise."""
    reproducible: bool = False
    """Compute models and rows one at a time, each whole on one device, and add them up in one order: the adapters are
    the same to the bit on any number of devices and processes of one kind. Every device then holds the whole base
    while it trains, and `parts` and the mesh's tensor axis save nothing."""
    skips: int = 3
    """Consecutive updates that a model may skip because its loss or gradient is not finite, before the run stops."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    snapshots: int = 0
    """Adapters that are kept of each model on its way, for the analysis `trajectory`: after 1/2, 1/4, 1/8, ... of its
    steps, so that early ones are denser. Each is a PEFT folder in `snapshots/`, as large as the model's own."""
    log_every: int = 20
    """Steps of a model between two points of its training curve; each is the mean loss since the point before."""
    score_prompts: int = 1_000
    """Test prompts per task for the exact-match score; 0 leaves scoring out."""
    score_tokens: int = 32
    """Most tokens that are generated per answer for the score."""

    def __post_init__(self):
        """Turns a boolean `remat` into its word, so that a flag can still override it."""
        if isinstance(self.remat, bool):
            self.remat = "on" if self.remat else "off"


@dataclass
class Compare:
    """States and similarity."""

    pool: Pool = "last"
    """States of a prompt that are compared: `last` (the paper's: the last prompt token's), `mean` (over the prompt's
    tokens) or `all` (every token is a row; sums are streamed, so there are no intervals and no p values)."""
    engine: Engine = "auto"
    """`kept` (rows stay on the devices; intervals and p values), `moments` (sums, whose memory does not grow with the
    rows) or `auto`: kept rows if they fit."""
    mismatched: int = 1
    """Control models of other tasks with which each task's prompts are compared as well."""
    permutations: int = 200
    """Row permutations for the null distribution; 0 leaves the p values out."""
    batch_rows: int = 64
    """Packed prompt rows per forward pass, per model."""
    draws: int = 2_000
    """Bootstrap draws over tasks for the intervals of the findings."""


@dataclass
class Analyse:
    """What is computed after the comparison, each from a stage of its own; the log says the price of each before it
    starts."""

    prompts: int = 1_000
    """Test prompts per task whose states are kept for the analyses where the comparison streams sums and keeps none."""
    spectrum: bool = True
    """Dimensions that hold 99 % of the variance, by layer (the paper's figure 5)."""
    map: bool = True
    """Map of the states by cluster at five depths (the paper's figure 4), and how well clusters are told apart."""
    map_prompts: int = 32
    """Test prompts per task on the map, drawn by the seed."""
    map_dimensions: int = 1_024
    """Dimensions in which the map keeps a state. Wider ones are projected on a random basis, which changes distances by
    about 2 % at 1,024 of 4,096 dimensions, and hides what differs in many faint directions from a probe."""
    correlates: bool = True
    """Correlation of similarity with readability and training rows over tasks (the paper's figure 6)."""
    correlates_prompts: int = 256
    """Test prompts per task whose readability is measured."""
    factors: bool = True
    """The parts of each similarity that template, answer and item make, and what is left of it within the answer."""
    factor_permutations: int = 199
    """Permutations of its levels by which each factor is tested."""
    factor_prompts: int = 4_000
    """Test prompts per task that are split by factors, the first ones; a device takes 144 bytes times their square."""
    measures: bool = True
    """Other measures of similarity on a subset, fixed in advance, and whether they agree with each finding."""
    measures_tasks: tuple[str, ...] = ("one_per_cluster",)
    """Tasks whose states the other measures compare: names of tasks and clusters, or the words of `tuning.seeded`."""
    measures_prompts: int = 256
    """Prompts per task that the other measures compare, at most: the first ones in random order, those of new items
    before further ones of the same item."""
    measures_layers: int = 8
    """Blocks that the other measures compare, at most: evenly spread, the first and the last one included."""
    measures_share: float = 0.2
    """The most that the other measures may add to the comparison, as a share of its operations: prompts and layers are
    reduced until they fit. 0 for no limit."""
    layers: bool = True
    """Similarity of every layer with every other one."""
    layers_tasks: tuple[str, ...] = ("one_per_cluster",)
    """Tasks whose layers are compared with one another; the same words as in `tuning.seeded`."""
    layers_prompts: int = 2_000
    """Most test prompts per task for that, the first ones."""
    weights: bool = True
    """Size and overlap of the updates of E and of the specialists, layer by layer."""
    merged: bool = True
    """The mean of the specialists as a further experimental model."""
    merged_rank: int = 512
    """Largest rank of their mean. With more specialists than fit, the smallest parts of the mean are cut off, and the
    log says how much that is; no rank needs to be above the model's width."""
    merged_scale: float = 1.0
    """Factor of their mean; the number of specialists gives their sum, as in task arithmetic."""
    merged_prompts: int = 2_000
    """Most test prompts per task that it reads, the first ones."""
    profile: bool = True
    """What each layer's adapter does for the answers: adapters kept in some layers only, and exchanged. Not for models
    that are tuned in full."""
    profile_prompts: int = 64
    """Test prompts per task whose answers the layer profiles are measured on, the first ones in `tasks.test_order`."""
    profile_layers: int = 0
    """Depths at which the layer profiles cut the network, evenly chosen; 0 takes every layer. About eight states per
    depth are on the devices at once, for each row of a batch."""
    trajectory: bool = True
    """When each layer settles, from the adapters that `tuning.snapshots` keeps."""
    trajectory_tasks: tuple[str, ...] = ("one_per_cluster",)
    """Tasks whose specialists, and on whose prompts E, are followed: the same words as in `tuning.seeded`. Tasks with a
    second seed are measured against their ceiling."""
    trajectory_prompts: int = 256
    """Test prompts per task of `trajectory`, the first ones."""


@dataclass
class Mesh:
    """Devices on each axis; -1 takes the rest. Only for speed and memory: no result depends on it."""

    adapter: int = -1
    """Devices that hold different adapters (tuning the controls)."""
    fsdp: int = 1
    """Devices over which the rows of a batch and the base model's weights are spread."""
    tensor: int = 1
    """Devices over which heads, feed-forward columns and the vocabulary are spread."""


@dataclass
class Pretraining:
    """The miniature base model, which a run trains for itself; no other base uses these fields."""

    layers: int = 8
    """Blocks."""
    hidden: int = 64
    """Width of the states."""
    heads: int = 4
    """Attention heads per block."""
    feed_forward: int = 172
    """Width of the feed-forward layers."""
    documents: int = 60_000
    """Documents of the embedded corpus."""
    row_length: int = 32
    """Positions per row."""
    batch_rows: int = 16
    """Rows per step."""
    steps: int = 800
    """Optimizer steps."""
    learning_rate: float = 0.01
    """Peak learning rate of Muon, which updates the blocks' matrices."""
    adam_learning_rate: float = 0.004
    """Peak learning rate of Adam, which updates the embedding and the norms."""
    warmup: float = 0.08
    """Share of the steps in which both learning rates rise from zero; 0 to 1."""


@dataclass
class Config:
    """A whole run."""

    name: str = "run"
    """Name of the run, for people and trackers."""
    base: str = MINIATURE
    """Base model: a Hugging Face folder or hub id; `miniature` pre-trains the embedded one."""
    revision: str = ""
    """Revision of a hub id; empty takes the default branch."""
    dtype: Dtype = "float32"
    """Number type in which the base model is stored and computed; adapters are always float32."""
    seed: int = 0
    """Seed of data order, initial adapters, permutations and draws."""
    track: tuple[Tracker, ...] = ()
    """Trackers that mirror metrics.jsonl: `tensorboard` (in the run folder's `tensorboard/`), `wandb`."""
    tasks: Tasks = field(default_factory=Tasks)
    """Tasks and their rows."""
    tokens: Tokens = field(default_factory=Tokens)
    """From text to token ids."""
    tuning: Tuning = field(default_factory=Tuning)
    """Training of all models."""
    compare: Compare = field(default_factory=Compare)
    """States and similarity."""
    analyse: Analyse = field(default_factory=Analyse)
    """What is computed beside the comparison."""
    pretraining: Pretraining = field(default_factory=Pretraining)
    """The miniature base model."""
    mesh: Mesh = field(default_factory=Mesh)
    """Devices."""


def recompute(remat: str) -> bool | None:
    """Returns whether `tuning.remat` asks for recomputation; None leaves it to the memory of the compiled step."""
    return REMAT[remat.lower()]

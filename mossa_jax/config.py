"""The vocabulary of a run: one dataclass per stage, every knob with its unit, default and where that comes from.

Plain dataclasses (not frozen), so that `--config.tuning.rank=16` can override any field.
"""

from dataclasses import dataclass, field

from mossa_jax.errors import BAD_CONFIG, Refusal

MINIATURE = "miniature"
PRETRAINED, TUNED = "pretrained", "tuned"
"""Names of the experimental models: the base model itself, and E trained on the mixture."""

SUITES = (MINIATURE, "flan2021", "folder", "natural_instructions", "hub")
SELECTIONS = ("paper", "flan62", "all69")
MIXTURES = ("capped", "proportional", "equal")
METHODS = ("lora", "full")
OPTIMIZERS = ("adamw", "adafactor")
TRACKERS = ("tensorboard", "wandb")

REMAT = {"auto": None, "on": True, "true": True, "off": False, "false": False}
"""What `tuning.remat` may be, as on the command line -> whether blocks are recomputed; None: by memory."""


@dataclass
class Columns:
    """Names of the columns, or JSON fields, of a table of examples."""

    inputs: str = "inputs"
    targets: str = "targets"
    task: str = "task"
    """Only read with suite `hub`: which task a row belongs to. Empty: all rows are one task."""
    cluster: str = "cluster"
    """Only read with suite `hub`, and optional there."""
    template: str = "template"
    """Optional: a whole number that says which instruction template made the row."""


@dataclass
class Tasks:
    """Which tasks, where their rows come from, and how many of each."""

    suite: str = MINIATURE
    """`miniature` (embedded), `flan2021` (from `sources`), `folder` (JSONL or Parquet files in `folder`),
    `natural_instructions` (Super-NaturalInstructions JSON files in `folder`) or `hub` (one data set of `sources`)."""
    folder: str = ""
    """With suite `folder`: holds `<split>/<task>.jsonl` or `.parquet` and, optionally, `tasks.json` with clusters."""
    selection: str = "paper"
    """With suite `flan2021`: `paper` (60 tasks, and seven of Misc. held out), `flan62` (FLAN's own count), `all69`."""
    sources: tuple[str, ...] = ()
    """Hub data sets (`org/name` or `org/name@revision`) or folders of the same layout; a task of FLAN 2021 is taken
    from the first that has it. Empty: `Muennighoff/flan`, which lacks newsroom, winogrande and xsum."""
    subset: str = ""
    """With suite `hub`: the data set's configuration, where it has several."""
    columns: Columns = field(default_factory=Columns)
    """What the columns of a folder's or data set's rows are called."""
    test_share: float = 0.1
    """Share of the rows, chosen by their text, that become test prompts where the source has no test split."""
    only: tuple[str, ...] = ()
    """Names of the tasks or clusters to keep; empty keeps all."""
    held_out: tuple[str, ...] = ("suite",)
    """Tasks or clusters that E never sees. `("suite",)` takes the suite's own; `()` holds none out."""
    allow_missing: bool = False
    """Go on without tasks that no source has, and say so in the report; else they are refused."""
    allow_bad_rows: bool = False
    """Leave out rows that are no usable example, and count them; else they are refused."""
    max_train: int = 30_000
    """Training rows a task, the first ones. 30,000 is FLAN 2021's own cap per data set."""
    max_test: int = 10_000
    """Test prompts a task, the first ones. 10,000 as in the authors' runs."""
    mixture: str = "capped"
    """How much each task gives to E: `capped` (all it has, under `max_per_cluster`, our reading of the authors' runs),
    `proportional` (by size, none counted above `max_rate`) or `equal`."""
    max_per_cluster: int = 50_000
    """With mixture `capped`: rows that one cluster may give. 50,000 as in the authors' runs."""
    max_rate: int = 3_000
    """With mixture `proportional`: the size above which a task counts no more. 3,000 is FLAN 2021's."""
    mixture_rows: int = 0
    """With mixture `proportional` or `equal`: examples in all; 0 takes as many as need no row twice."""


@dataclass
class Tokens:
    """From text to rows of token ids."""

    template: str = "none"
    """`none`, `llama2` (with the default system prompt, as the authors) or `chat` (the tokenizer's own)."""
    max_tokens: int = 1024
    """Positions that prompt and answer may take together. 1024 as in the authors' runs."""
    truncation: str = "keep_end"
    """What a prompt that is too long loses: `keep_end` the beginning of its content, `paper` its right end, as in the
    authors' runs."""
    row_length: int = 1024
    """Positions of a packed row."""
    share_prefix: bool = True
    """Work through the ids that all prompts of a model's rows begin with (template, system prompt, instruction) once
    a packed row, where they are more than 15 % of its tokens. The loss of an example is the same; a row holds more."""
    long_row_length: int = 0
    """Positions of the rows for what does not fit `row_length`; 0: everything fits, `max_tokens` being no larger."""


@dataclass
class Schedule:
    """What of one kind of model is tuned, how long and how fast."""

    method: str = "lora"
    """`lora`: an adapter over the frozen base, exported as a PEFT folder; `full`: every parameter, one model after
    the other, each exported as a model folder."""
    optimizer: str = "adamw"
    """With method `full`: `adamw`, or `adafactor` for memory (12 bytes a parameter instead of 16)."""
    epochs: float = 3.0
    """Passes over the model's own rows. 3 as in the authors' runs."""
    max_steps: int = 0
    """Upper bound on optimizer steps; 0 means none."""
    batch_rows: int = 16
    """Packed rows a step and model."""
    parts: int = 1
    """Parts that the rows of a step are worked through in, one after another, for memory; must divide `batch_rows`."""
    learning_rate: float = 5e-5
    """Peak, decayed by a cosine to zero. 5e-5 as in the authors' runs."""


@dataclass
class Tuning:
    """LoRA, and the optimizer of every model; defaults are the authors' (rank 8, alpha 16, q and v)."""

    rank: int = 8
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Any of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."""
    first_layer: int = 0
    """Blocks below this one carry no adapter (and so keep the base model's states exactly)."""
    control: Schedule = field(default_factory=Schedule)
    experimental: Schedule = field(default_factory=Schedule)
    slots: int = 64
    """Adapters of controls that are trained at once, in one program; a slot whose model is done takes the next one."""
    seeds: int = 1
    """Models of E with seeds of their own; the first is compared, the others (`tuned.seed1`, ...) are exported."""
    control_seeds: int = 1
    """The same for the controls of `seeded`."""
    seeded: tuple[str, ...] = ()
    """Tasks or clusters whose controls get `control_seeds`; empty: all."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from zero."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest global gradient norm, per model."""
    remat: str = "auto"
    """Recompute the inside of blocks in the backward pass, a third more work for far less memory: `on` (or True),
    `off` (or False), or `auto`: only where the compiled step does not fit the device without."""
    reproducible: bool = False
    """Models and rows go one by one, each whole on one device, and are added up in one order: the same adapters to the
    bit on any number of devices and processes of one kind. Every device holds the whole base while it trains; `parts`
    and the mesh's tensor axis save nothing."""
    skips: int = 3
    """Updates in a row that a model may skip, its loss or gradient not being finite, before the run stops."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of progress and of metrics.jsonl."""
    score_prompts: int = 1_000
    """Test prompts a task for the exact-match score; 0 leaves scoring out."""
    score_tokens: int = 32
    """Longest answer that is generated for it."""

    def __post_init__(self):
        """A truth value for `remat`, as it was given once, becomes its word, so that a flag can still override it."""
        if isinstance(self.remat, bool):
            self.remat = "on" if self.remat else "off"


@dataclass
class Compare:
    """States and similarity."""

    pool: str = "last"
    """`last` (the paper's: last prompt token), `mean` (over the prompt's tokens) or `all` (every token is a row; sums
    are streamed, so there are no intervals and p-values)."""
    engine: str = "auto"
    """`kept` (rows stay on the devices; intervals and p-values), `moments` (sums, whose memory does not grow with
    rows) or `auto`: kept rows where they fit."""
    mismatched: int = 1
    """Control models of other tasks that every task's prompts are also compared with."""
    permutations: int = 200
    """Row permutations for the null distribution; 0 leaves the p values out."""
    batch_rows: int = 64
    """Packed prompt rows in one forward pass, per model."""
    draws: int = 2_000
    """Bootstrap draws over tasks for the intervals of the findings."""


@dataclass
class Mesh:
    """Devices on each axis; -1 takes what is left. Only for speed and memory: no result depends on it."""

    adapter: int = -1
    """Different adapters on different devices (tuning the controls)."""
    fsdp: int = 1
    """Rows of a batch, and the base model's weights, spread over devices."""
    tensor: int = 1
    """Heads, feed-forward columns and vocabulary spread over devices."""


@dataclass
class Pretraining:
    """The miniature base model, which a run makes for itself; no other base uses these fields."""

    layers: int = 8
    hidden: int = 64
    heads: int = 4
    feed_forward: int = 172
    documents: int = 60_000
    row_length: int = 32
    batch_rows: int = 16
    steps: int = 800
    learning_rate: float = 0.01
    """Of Muon, which moves the blocks' matrices."""
    adam_learning_rate: float = 0.004
    """Of Adam, which moves embedding and norms."""
    warmup: float = 0.08
    """Share of the steps in which both rise from zero."""


@dataclass
class Config:
    """A whole run."""

    name: str = "run"
    base: str = MINIATURE
    """MODEL: a Hugging Face folder or hub id; `miniature` pre-trains the embedded one."""
    revision: str = ""
    """Revision of a hub id; empty takes the default branch."""
    dtype: str = "float32"
    """Compute and storage type of the base model: float32 or bfloat16. Adapters are float32 always."""
    seed: int = 0
    track: tuple[str, ...] = ()
    """Where metrics.jsonl is mirrored to as well: `tensorboard` (the run folder's `tensorboard/`), `wandb`."""
    tasks: Tasks = field(default_factory=Tasks)
    tokens: Tokens = field(default_factory=Tokens)
    tuning: Tuning = field(default_factory=Tuning)
    compare: Compare = field(default_factory=Compare)
    pretraining: Pretraining = field(default_factory=Pretraining)
    mesh: Mesh = field(default_factory=Mesh)


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def recompute(remat: str) -> bool | None:
    """Whether `tuning.remat` asks for recomputation; None leaves it to the compiled step's memory."""
    return REMAT[remat.lower()]


def check(config: Config) -> None:
    """Refuses values that could only fail later.

    Raises:
      Refusal: 2, naming the field, its value and what it may be.
    """

    def require(good: bool, name: str, what: str) -> None:
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        if not good:
            raise Refusal(BAD_CONFIG, f"config.{name}={value!r}: {what}")

    tuning, tokens, tasks = config.tuning, config.tokens, config.tasks
    require(tasks.suite in SUITES, "tasks.suite", f"must be one of {', '.join(SUITES)}")
    if tasks.suite in ("folder", "natural_instructions"):
        require(bool(tasks.folder), "tasks.folder", f"suite {tasks.suite!r} needs the folder's path")
    if tasks.suite == "hub":
        require(len(tasks.sources) == 1, "tasks.sources", "suite 'hub' needs exactly one data set")
        require(bool(tasks.columns.inputs), "tasks.columns.inputs", "must name a column")
        require(bool(tasks.columns.targets), "tasks.columns.targets", "must name a column")
    require(tasks.selection in SELECTIONS, "tasks.selection", f"must be one of {', '.join(SELECTIONS)}")
    require(tasks.mixture in MIXTURES, "tasks.mixture", f"must be one of {', '.join(MIXTURES)}")
    require(0 < tasks.test_share < 1, "tasks.test_share", "must be above 0 and below 1")
    require(tasks.mixture_rows >= 0, "tasks.mixture_rows", "must be 0 or more")
    unknown = [tracker for tracker in config.track if tracker not in TRACKERS]
    require(not unknown, "track", f"must be some of {', '.join(TRACKERS)}")
    require(config.dtype in ("float32", "bfloat16"), "dtype", "must be 'float32' or 'bfloat16'")
    require(tokens.template in ("none", "llama2", "chat"), "tokens.template", "must be none, llama2 or chat")
    require(tokens.truncation in ("keep_end", "paper"), "tokens.truncation", "must be keep_end or paper")
    require(tokens.max_tokens >= 4, "tokens.max_tokens", "must be at least 4")
    longest = max(tokens.row_length, tokens.long_row_length)
    require(
        longest >= tokens.max_tokens,
        "tokens.row_length",
        "it or tokens.long_row_length must be at least tokens.max_tokens",
    )
    require(
        tokens.long_row_length == 0 or tokens.long_row_length > tokens.row_length,
        "tokens.long_row_length",
        "must be 0 or above tokens.row_length",
    )
    require(str(tuning.remat).lower() in REMAT, "tuning.remat", "must be auto, on (True) or off (False)")
    unknown = [target for target in tuning.targets if target not in TARGETS]
    require(not unknown and bool(tuning.targets), "tuning.targets", f"must be some of {', '.join(TARGETS)}")
    compare = config.compare
    require(compare.pool in ("last", "mean", "all"), "compare.pool", "must be 'last', 'mean' or 'all'")
    require(compare.engine in ("auto", "kept", "moments"), "compare.engine", "must be 'auto', 'kept' or 'moments'")
    streamed = compare.engine == "moments" or compare.pool == "all"
    require(compare.pool != "all" or compare.engine != "kept", "compare.engine", "tokens of pool 'all' are never kept")
    whole = "full" in (tuning.control.method, tuning.experimental.method)
    require(not (streamed and whole), "compare.pool", "sums are streamed over adapters of one base, not whole models")
    require(config.compare.permutations >= 0, "compare.permutations", "must be 0 or more")
    require(config.compare.mismatched >= 0, "compare.mismatched", "must be 0 or more")
    for name in (
        "tasks.max_train tasks.max_test tasks.max_per_cluster tasks.max_rate tokens.row_length "
        "tuning.rank tuning.slots tuning.seeds tuning.control_seeds tuning.skips tuning.log_every "
        "tuning.checkpoint_every tuning.control.batch_rows tuning.experimental.batch_rows compare.batch_rows "
        "compare.draws pretraining.layers pretraining.steps"
    ).split():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        require(value >= 1, name, "must be at least 1")
    for kind in ("control", "experimental"):
        schedule = getattr(tuning, kind)
        divides = schedule.parts >= 1 and schedule.batch_rows % schedule.parts == 0
        require(divides, f"tuning.{kind}.parts", f"must be at least 1 and divide batch_rows={schedule.batch_rows}")
        require(schedule.epochs > 0, f"tuning.{kind}.epochs", "must be above 0")
        require(schedule.learning_rate > 0, f"tuning.{kind}.learning_rate", "must be above 0")
        require(schedule.method in METHODS, f"tuning.{kind}.method", f"must be one of {', '.join(METHODS)}")
        require(schedule.optimizer in OPTIMIZERS, f"tuning.{kind}.optimizer", f"must be one of {', '.join(OPTIMIZERS)}")
        full = schedule.method == "full"
        require(full or schedule.optimizer == "adamw", f"tuning.{kind}.optimizer", "adapters are tuned by adamw alone")
        require(
            not (full and tuning.reproducible),
            "tuning.reproducible",
            f"adapters alone can be, tuning.{kind}.method is 'full'",
        )
        lowest = f"must be 0, since tuning.{kind}.method='full' tunes every block"
        require(not full or tuning.first_layer == 0, "tuning.first_layer", lowest)

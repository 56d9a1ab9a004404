"""The vocabulary of a run: one dataclass per stage, every knob with its unit, default and where that comes from.

Plain dataclasses (not frozen), so that `--config.tuning.rank=16` can override any field.
"""

from dataclasses import dataclass, field

from mossa_jax.rundir import BAD_CONFIG, Refusal

MINIATURE = "miniature"


@dataclass
class Tasks:
    """Which tasks, and how many rows of each."""

    suite: str = MINIATURE
    """`miniature` (embedded) or `folder` (JSONL files in `folder`)."""
    folder: str = ""
    """With suite `folder`: holds `<split>/<task>.jsonl` and, optionally, `tasks.json` with clusters."""
    only: tuple[str, ...] = ()
    """Names of the tasks to keep; empty keeps all."""
    held_out: tuple[str, ...] = ("suite",)
    """Tasks that E never sees. `("suite",)` takes the suite's own; `()` holds none out."""
    allow_bad_rows: bool = False
    """Leave out rows of a folder that have no text in `inputs` or `targets`, and count them; else they are refused."""
    max_train: int = 30_000
    """Training rows a task, the first ones. 30,000 is FLAN 2021's own cap per data set."""
    max_test: int = 10_000
    """Test prompts a task, the first ones. 10,000 as in the authors' runs."""
    max_per_cluster: int = 50_000
    """Rows that one cluster may give to E's mixture. 50,000 as in the authors' runs."""


@dataclass
class Tokens:
    """From text to rows of token ids."""

    template: str = "none"
    """`none`, `llama2` (with the default system prompt, as the authors) or `chat` (the tokenizer's own)."""
    max_tokens: int = 1024
    """Positions that prompt and answer may take together. 1024 as in the authors' runs."""
    truncation: str = "keep_end"
    """What a prompt that is too long loses: `keep_end` its beginning, `paper` its right end, as in the authors'."""
    row_length: int = 1024
    """Positions of a packed row; at least `max_tokens`."""


@dataclass
class Schedule:
    """How long and how fast one kind of model is tuned."""

    epochs: float = 3.0
    """Passes over the model's own rows. 3 as in the authors' runs."""
    max_steps: int = 0
    """Upper bound on optimizer steps; 0 means none."""
    batch_rows: int = 16
    """Packed rows a step and model."""
    learning_rate: float = 5e-5
    """Peak, decayed by a cosine to zero. 5e-5 as in the authors' runs."""


@dataclass
class Tuning:
    """LoRA and its optimizer; defaults are the authors' (rank 8, alpha 16, q and v)."""

    rank: int = 8
    alpha: float = 16.0
    """The update is scaled by alpha / rank."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Any of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj."""
    first_layer: int = 0
    """Blocks below this one carry no adapter (and so keep the base model's states exactly)."""
    control: Schedule = field(default_factory=Schedule)
    experimental: Schedule = field(default_factory=Schedule)
    population: int = 64
    """Controls that are trained in one program; more tasks than that go in several groups."""
    warmup: float = 0.0
    """Share of the steps in which the learning rate rises from zero."""
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0
    clip: float = 1.0
    """Largest global gradient norm, per model."""
    remat: bool = True
    """Recompute the inside of blocks in the backward pass: a third more work for far less memory."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    log_every: int = 20
    """Steps between lines of progress and of metrics.jsonl."""
    score_prompts: int = 1_000
    """Test prompts a task for the exact-match score; 0 leaves scoring out."""
    score_tokens: int = 32
    """Longest answer that is generated for it."""


@dataclass
class Compare:
    """States and similarity."""

    pool: str = "last"
    """`last` (the paper's: last prompt token) or `mean` (over the prompt's tokens)."""
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
    tasks: Tasks = field(default_factory=Tasks)
    tokens: Tokens = field(default_factory=Tokens)
    tuning: Tuning = field(default_factory=Tuning)
    compare: Compare = field(default_factory=Compare)
    pretraining: Pretraining = field(default_factory=Pretraining)
    mesh: Mesh = field(default_factory=Mesh)


TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


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
    require(tasks.suite in (MINIATURE, "folder"), "tasks.suite", "must be 'miniature' or 'folder'")
    if tasks.suite == "folder":
        require(bool(tasks.folder), "tasks.folder", "suite 'folder' needs the folder's path")
    require(config.dtype in ("float32", "bfloat16"), "dtype", "must be 'float32' or 'bfloat16'")
    require(tokens.template in ("none", "llama2", "chat"), "tokens.template", "must be none, llama2 or chat")
    require(tokens.truncation in ("keep_end", "paper"), "tokens.truncation", "must be keep_end or paper")
    require(tokens.max_tokens >= 4, "tokens.max_tokens", "must be at least 4")
    require(tokens.row_length >= tokens.max_tokens, "tokens.row_length", "must be at least tokens.max_tokens")
    unknown = [target for target in tuning.targets if target not in TARGETS]
    require(not unknown and bool(tuning.targets), "tuning.targets", f"must be some of {', '.join(TARGETS)}")
    require(config.compare.pool in ("last", "mean"), "compare.pool", "must be 'last' or 'mean'")
    require(config.compare.permutations >= 0, "compare.permutations", "must be 0 or more")
    require(config.compare.mismatched >= 0, "compare.mismatched", "must be 0 or more")
    for name in (
        "tasks.max_train tasks.max_test tasks.max_per_cluster tuning.rank tuning.population tuning.log_every "
        "tuning.checkpoint_every tuning.control.batch_rows tuning.experimental.batch_rows compare.batch_rows "
        "compare.draws pretraining.layers pretraining.steps"
    ).split():
        value = config
        for part in name.split("."):
            value = getattr(value, part)
        require(value >= 1, name, "must be at least 1")
    for kind in ("control", "experimental"):
        schedule = getattr(tuning, kind)
        require(schedule.epochs > 0, f"tuning.{kind}.epochs", "must be above 0")
        require(schedule.learning_rate > 0, f"tuning.{kind}.learning_rate", "must be above 0")

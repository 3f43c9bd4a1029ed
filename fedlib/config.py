"""What a run and a study are made of: validated, frozen, hashed.

`RunConfig` is one training with one seed; `StudyConfig` is a grid of runs on one task. A *profile* (`smoke`, `quick`,
`paper`) holds the sizes that go together; every field of it can be set by a notebook parameter of the same name.
"""

import ast
import difflib
import functools
import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

ROOT = Path(__file__).resolve().parent.parent
TASK_FOLDER = Path(__file__).resolve().parent / "tasks"
TASKS = tuple(sorted(path.stem for path in TASK_FOLDER.glob("*.yaml")))
"""A task is a module and a table of values beside it, NAME.py and NAME.yaml in fedlib/tasks."""

Task = Literal[TASKS]
Mode = Literal["centralized", "local", "federated"]
Partition = Literal["balanced", "unbalanced", "quantity_skew", "label_skew", "missing_classes", "by_group"]
Strategy = Literal["fedavg", "fedavgm", "fedprox", "fedadam", "fedadagrad", "fedmedian", "fedtrimmedavg", "krum", "scaffold"]
KRUM_CLIENTS = 5
"""2 f + 3 with one bad client (f = 1): Blanchard et al., 2017."""
DELTA = 1e-5
"""Chance that the promise of epsilon fails (*chosen*)."""
EPSILON_COVERS = {
    "central": "the weights, not the clients' losses and scores in the tables of a run",
    "local": "the weights, not the number of cases and the seconds of each client",
}
"""What epsilon bounds, and what it does not, by mechanism."""
ProfileName = Literal["smoke", "quick", "paper"]
Precision = Literal["fp32", "bf16"]


RECIPE = 4
"""Version of what trains and scores: raise it when the same configuration gives other results (tests/test_recipe.py)."""


class UserError(ValueError):
    """Something the user can mend: one line with the file or parameter, the value, and what was expected."""

    def _render_traceback_(self) -> list[str]:
        """Let IPython show the one line instead of a traceback through our code."""
        return [f"{type(self).__name__}: {self}"]


def _listed(value: Any) -> Any:
    """Take `"2,4,8"`, `"[2, 4, 8]"`, `4` and `[2, 4, 8]` alike: papermill's `-p` sends lists as text."""
    if isinstance(value, str):
        return [part.strip(" '\"") for part in value.strip("[]() ").split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Folder = Annotated[Path, AfterValidator(Path.absolute)]
T = TypeVar("T")
Listed = Annotated[tuple[T, ...], BeforeValidator(_listed), Field(min_length=1)]
Distinct = Annotated[Listed[T], AfterValidator(lambda values: tuple(dict.fromkeys(values)))]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True,
                              use_attribute_docstrings=True)  # fmt: skip


class TrainingConfig(_Frozen):
    """How every arm of a study trains. All values are *chosen*: the paper's abstract states none of them."""

    rounds: Positive
    """Federated rounds. A centralized run trains rounds x local_epochs epochs (equal budget)."""
    local_epochs: Positive
    """Epochs over a client's own cases in each round."""
    batch_size: Positive
    """Cases of an optimizer step."""
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    """Peak of the optimizer's learning rate."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """torch's AdamW, or SGD with momentum; its state starts anew in every round, in every arm."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of SGD."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.01
    schedule: Literal["cosine", "constant"] = "cosine"
    """cosine: linear warm-up over the first tenth of the run, then cosine to zero over the rest of it."""
    drop_last: bool = False
    """Drop a short last batch; else batches are of nearly equal size."""
    augmentation: Literal["affine", "authors", "none"] = "affine"
    """affine: rotation, scaling, translation; authors: sharpness, blur and translation, for images (`data/augment.py`)."""
    input_low: Literal[-1, 0] = -1
    """Intensities are scaled to the range from this to 1."""
    width: Positive
    """Channels of the first layer: 64 in the ResNet18 of the literature; doubled at each level in both models."""
    unbalance_ratio: Annotated[float, Field(ge=1)]
    """quantity_skew: cases of the largest client over those of the smallest."""
    precision: Precision
    """Arithmetic of the forward pass; weights, losses and updates are always fp32."""
    deterministic: bool = True
    """Only kernels that give the same bits every time; a GPU may be faster without."""


class PartitionConfig(_Frozen):
    """What single partitions need to know besides the number of clients."""

    alpha: Annotated[float, Field(gt=0, le=1e6)] = 0.5
    """label_skew: parameter of the Dirichlet draws. 0.1 leaves most of a class at one client, 100 spreads it evenly."""
    n_missing: Literal[1, 2] = 2
    """missing_classes: classes that each client lacks."""
    group_column: str = ""
    """by_group: the column of cases.csv that names the group, such as hospital."""


class FederationConfig(_Frozen):
    """How a federation runs, besides its strategy. All values are *chosen*."""

    fraction_train: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the clients that train in a round, drawn anew for each round from the seed."""
    quorum: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of a round's clients that must send a valid reply; 1: a single failure stops the run."""
    reply_timeout: Annotated[float, Field(gt=0)] = 3600.0
    """Seconds after which a client counts as absent, over a network; in process the server waits."""
    batch_norm: Literal["average", "local", "group"] = "average"
    """BatchNorm is averaged like all weights; stays at its client (FedBN); or is GroupNorm instead, in every arm."""
    privacy: Literal["none", "central", "local"] = "none"
    """Differential privacy of a client's update: noise added by the server to the mean, or by each client."""
    noise_multiplier: Annotated[float, Field(gt=0)] = 1.0
    """Standard deviation of the noise over its sensitivity, with privacy."""
    clipping_norm: Annotated[float, Field(gt=0)] = 1.0
    """Largest L2 norm of a client's update, with privacy: longer ones are shortened to it."""

    @property
    def is_personalized(self) -> bool:
        """Tell whether every client ends with a model of its own: what is shared, and its own BatchNorm."""
        return self.batch_norm == "local"

    def clients_per_round(self, n_clients: int) -> int:
        """Return the number of clients that take part in a round."""
        return max(1, round(self.fraction_train * n_clients))


Margin = Annotated[float, Field(gt=0, lt=1)]


class AnalysisConfig(_Frozen):
    """What counts as no worse: stated before a run and kept in its record. Trains nothing, so it is no part of `run_id`.

    All values are *chosen*: the paper's abstract names no margin and no test.
    """

    margin_accuracy: Margin = 0.05
    """Largest loss of accuracy against centralized training that counts as no worse."""  # a usual bound in diagnosis
    margin_sensitivity: Margin = 0.05
    """The same for macro sensitivity."""
    margin_dice: Margin = 0.02
    """The same for DSC, of each structure."""  # the paper's own differences lie between 0.003 and 0.014
    significance: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Level of the verdicts: they rest on two-sided intervals at 1 - significance, so each one-sided test has half of it."""

    def margin(self, metric: str) -> float:
        """Return the margin of a primary endpoint: `dice_LV` and `dice_Myo` share `margin_dice`."""
        return getattr(self, f"margin_{metric.partition('_')[0]}")

    @property
    def level(self) -> str:
        """Return the level of the two-sided intervals, in words: `95%`."""
        return f"{round(100 * (1 - self.significance), 3):g}%"


class RunConfig(TrainingConfig, PartitionConfig, FederationConfig, AnalysisConfig):
    """One configuration with one seed. `run_id` names it by every value that has an effect, defaults included."""

    task: Task
    mode: Mode
    n_clients: Positive = 1
    partition: Partition | Literal["none"] = "none"
    strategy: Strategy | Literal["none"] = "none"
    seed: Seed
    data_fingerprint: str
    """The fingerprint of the prepared set: another data set is another run."""
    recipe: int = RECIPE
    """Version of the code's results: a run of another version is another run."""

    @property
    def has_client_models(self) -> bool:
        """Tell whether every client ends with a model of its own; the run's scores are then their means."""
        return self.mode == "local" or self.is_personalized

    @property
    def run_id(self) -> str:
        """Return a readable name, ending in eight hex digits of the configuration's hash."""
        parts = [self.task, self.mode]
        if self.mode != "centralized":
            parts += [f"k{self.n_clients}", self.partition]
        if self.mode == "federated":
            parts.append(self.strategy)
        content = self.model_dump(exclude=set(AnalysisConfig.model_fields))
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return "-".join([*parts, f"s{self.seed}", digest[:8]])


def native_precision() -> Precision:
    """Return `bf16` where this machine's GPU, or without one its processor, computes it natively; else `fp32`.

    Natively: an Ampere GPU or later; a processor with AVX512-BF16 or AMX. Where torch only emulates bf16 it saves no time.
    """
    import torch  # here: a command line answers without it

    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities()
        native = able.get("avx512_bf16") or able.get("amx_bf16")
    return "bf16" if native else "fp32"


def precision_note(precision: Precision) -> str:
    """Say in one line that this machine only emulates a precision; nothing where it computes it natively."""
    if precision in ("fp32", native_precision()):
        return ""
    return f"precision {precision}: emulated on this machine; new runs take longer and may differ in the last digits"


class TaskProfile(TrainingConfig):
    """The sizes that go together, a table of a task's YAML: training, the grid of runs, and the synthetic set they suit."""

    precision: Precision | Literal["auto"]
    """auto: what the machine that plans the runs computes fastest, `native_precision`; a run says which it was."""
    client_counts: Distinct[Positive]
    """Numbers of clients, as in 2,4."""
    partitions: Distinct[Partition]
    """Who holds which case, several with commas. balanced: equal shares; unbalanced: a random share of every class;
    quantity_skew: the first client holds several times the last; label_skew: classes in different proportions;
    missing_classes: each client lacks one or two; by_group: whole groups, such as hospitals."""
    synthetic_cases: Positive
    """Cases of the synthetic set, made when no `data_dir` is given."""
    size: Positive
    """Side of the prepared synthetic images (pixels) or volumes (voxels)."""
    findings: Literal["clear", "mild"] = "mild"
    """Of the synthetic X-rays: clear ones are quick to learn, so that training ends in minutes; mild ones are slow."""


class StudyConfig(TaskProfile, PartitionConfig, FederationConfig, AnalysisConfig):
    """A grid of runs on one task: centralized, and local-only and federated for each client count and partition."""

    task: Task = "classification"
    profile: ProfileName = "quick"
    strategy: Strategy = "fedavg"
    """How the server aggregates."""
    seeds: Distinct[Seed] = Field((1,), alias="seed")
    data_dir: Folder | None = None
    """A prepared set, or a folder that holds one per task; None: the synthetic set under out_dir."""
    out_dir: Folder

    @classmethod
    def make(cls, **parameters: Any) -> "StudyConfig":
        """Build a study from flat parameters; what is missing or None is taken from the profile.

        Raises UserError, in one line, on an unknown name or a value of the wrong kind.
        """
        given = {name: value for name, value in parameters.items() if value is not None}
        profile, task = given.get("profile", "quick"), given.get("task", "classification")
        defaults: dict[str, Any] = {"out_dir": ROOT / "reports" / str(profile)}
        if profile in ProfileName.__args__ and task in TASKS:
            defaults |= task_values(task)[profile]
        study = validated(cls, defaults | given)
        study.check_compatibility()
        return study

    def check_compatibility(self) -> None:
        """Raise UserError when settings do not go together, before anything is trained."""
        replies = min(math.ceil(self.quorum * self.clients_per_round(n_clients)) for n_clients in self.client_counts)
        has_batch_norm, norm = task_values(self.task)["has_batch_norm"], f"batch_norm = {self.batch_norm!r}"
        private, privacy = self.privacy != "none", f"with privacy = {self.privacy!r}"
        refusals = [
            (self.strategy == "krum" and replies < KRUM_CLIENTS,
             f"client_counts = {min(self.client_counts)}: strategy krum needs {KRUM_CLIENTS} replies in a round to bear one "
             f"bad client, fraction_train and quorum guarantee {replies}; expected at least {KRUM_CLIENTS}"),
            (has_batch_norm and self.batch_norm != "group" and self.batch_size < 3,
             f"batch_size = {self.batch_size}: BatchNorm needs the spread of several cases, and the last batch is smaller; "
             "expected at least 3"),
            (not has_batch_norm and self.batch_norm != "average",
             f"{norm}: the model for {self.task} has no BatchNorm; expected 'average'"),
            (self.is_personalized and self.fraction_train < 1,
             f"fraction_train = {self.fraction_train}: a client that never trained would have no BatchNorm of its own; "
             "expected 1 with batch_norm = 'local'"),
            (private and has_batch_norm and self.batch_norm != "group",
             f"{norm}: statistics of BatchNorm would leave a client without noise; expected 'group' {privacy}"),
            (private and self.strategy != "fedavg", f"strategy = {self.strategy!r}: expected 'fedavg' {privacy}"),
            (private and self.quorum < 1,
             f"quorum = {self.quorum}: fewer clients than planned change what the noise protects; expected 1 {privacy}"),
        ]  # fmt: skip
        for refused, reason in refusals:
            if refused:
                raise UserError(reason)

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> "StudyConfig":
        """Build the study of a notebook from its `globals()`, after the cell tagged `parameters`.

        Raises UserError on an unknown name, be it typed into that cell or injected by papermill, which only warns of it.
        Both cells are read back from the input history.
        """
        known = {field.alias or name for name, field in cls.model_fields.items()} | set(cls.model_fields)
        cells = [(_assigned(cell), cell.startswith("# Parameters")) for cell in namespace.get("In", [])]
        typed = [names for names, injected in cells if not injected and {"task", "profile", "out_dir"} <= names][-1:]
        given = set().union(*typed, *(names for names, injected in cells if injected))
        return cls.make(**{name: namespace[name] for name in known | given if name in namespace})

    def replace(self, **changes: Any) -> "StudyConfig":
        """Return this study with other parameters. Raises what `make` raises."""
        return self.make(**self.model_dump(by_alias=True) | changes)

    @property
    def prepared_dir(self) -> Path:
        """Return where the prepared set is: data_dir, or the synthetic set's place under out_dir."""
        return self.data_dir or self.out_dir / "data" / self.task

    def decided(self) -> "StudyConfig":
        """Return this study with `precision = auto` decided: that of the folder's finished runs, else this machine's.

        So finished runs are found wherever they were made.
        """
        if self.precision != "auto":
            return self
        finished = self.out_dir.glob(f"runs/{self.task}-*/provenance.json")  # written when a run is done
        recorded = set()
        for path in finished:
            with suppress(ValueError, LookupError, OSError):  # a damaged run is named by those who read it
                recorded.add(json.loads(path.with_name("config.json").read_text())["precision"])
        return self.model_copy(update={"precision": recorded.pop() if len(recorded) == 1 else native_precision()})

    def runs(self, data_fingerprint: str, modes: tuple[Mode, ...] = Mode.__args__) -> list[RunConfig]:
        """Return every run of the grid, in the order of execution: centralized, then local and federated by K."""
        shared = self.decided().model_dump(include={*TrainingConfig.model_fields, *AnalysisConfig.model_fields}) | {
            "task": self.task, "data_fingerprint": data_fingerprint}  # fmt: skip
        needs = {"label_skew": ("alpha",), "missing_classes": ("n_missing",), "by_group": ("group_column",)}
        if self.batch_norm == "group":  # another model, so for every arm
            shared["batch_norm"] = "group"
        flower = self.model_dump(include={"strategy", *FederationConfig.model_fields})
        grid: list[dict[str, Any]] = []
        for seed in self.seeds:
            grid.append({"mode": "centralized", "seed": seed})
            for n_clients in self.client_counts:
                for partition in self.partitions:
                    client = {"seed": seed, "n_clients": n_clients, "partition": partition}
                    client |= self.model_dump(include=set(needs.get(partition, ())))
                    grid.append({"mode": "local", **client})
                    grid.append({"mode": "federated", **client, **flower})
        return [RunConfig(**shared | arm) for arm in grid if arm["mode"] in modes]


def validated(model: type[BaseModel], values: dict[str, Any]) -> Any:
    """Build `model` from `values`. Raises UserError: pydantic's first complaint, in one line that names the parameter."""
    try:
        return model(**values)
    except ValidationError as error:
        # A wrong task or profile leaves the fields that it would have set missing: the cause comes first.
        first = min(error.errors(), key=lambda complaint: complaint["type"] == "missing")
    name = str(first["loc"][0]) if first["loc"] else model.__name__
    if first["type"] != "extra_forbidden":
        raise UserError(f"{name} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}")
    known = sorted(field.alias or key for key, field in model.model_fields.items())
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of {', '.join(known)}"
    raise UserError(f"unknown parameter {name!r}: {hint}")


@functools.cache
def task_values(task: str) -> dict[str, Any]:
    """Read a task's table of values: has_batch_norm, the sizes of each profile, and the rows of the paper's protocol."""
    return yaml.safe_load((TASK_FOLDER / f"{task}.yaml").read_text())


def _assigned(cell: str) -> set[str]:
    """Return the names that a code cell assigns; none where it is not plain Python."""
    try:
        nodes = ast.walk(ast.parse(cell))
    except SyntaxError:  # a magic, or a mistake that IPython has reported
        return set()
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}

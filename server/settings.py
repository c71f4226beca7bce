"""A run's settings: the Flower run config, parsed once at start-up.

The same keys are options of the `efface` command, `-c` values of `flwr run`, and the table
`[tool.flwr.app.config]` in pyproject.toml (a test compares its defaults with these).

It is long because every setting is declared and explained in this one place.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from client.data import datasets, source
from client.data.splits import Data
from client.errors import BadSetting
from client.learning.distillation import REAL, START, STARTS
from client.learning.images import IMAGES, ImageTask
from client.learning.models import NAMES as MODEL_NAMES
from client.learning.models import ModelSpec, identified
from client.learning.networks import WITHOUT_BATCHNORM
from client.messages import Common
from client.own_task import source_of, task_of
from client.secure.context import MIN_NODES
from client.settings import MIN_CLIP, name
from client.simulation import partition
from client.simulation.settings import Simulation
from client.task import Task, canonical, option_values
from client.wire import ForgetSpec, Rule, Settings, at_least, between, one_of, positive, setting

_seed: Final = Rule(lambda v: 0 <= v < 2**63, "lie in [0, 2^63)")
_share: Final = Rule(lambda v: 0 < v <= 1, "lie in (0, 1]")
_device: Final = Rule(lambda v: v.split(":")[0] in ("auto", "cpu", "cuda"), "be auto, cpu or cuda")
_name: Final = name()
_text: Final = Rule(lambda v: len(v) <= 2000, "be at most 2000 characters")
DEFAULT_DATASET: Final = "digits"
DEFAULT_METHOD: Final = "quickdrop-calibrated"
LONGEST_LIST: Final = 80  # characters of clients' names in a federation's own


@dataclass(frozen=True, kw_only=True)
class RunSettings(Settings):
    """Everything that a run can be told. A request on a version takes the version's own training
    settings; what it is told about data, model and training is not read."""

    mode: str = setting(
        one_of("train", "forget", "relearn", "yardstick", "verify", "request"), "train"
    )
    home: str = setting(_text, "")  # the server home; empty for EFFACE_HOME or ~/.efface
    request: str = setting(_text, "")  # mode "request": the id of one that is written down already

    # Data and clients
    dataset: str = setting(_text, "")  # of the built-in task digits by default
    data_dir: str = setting(_text, "")
    partition: str = setting(_text, "dirichlet:0.5")
    num_clients: int = setting(at_least(1), 10)
    clients: str = setting(_text, "")  # names of those that take part; empty for all
    max_samples: int = setting(at_least(0), 0)
    holdout: float = setting(between(0.0, 0.5), 0.1)
    partition_seed: int = setting(_seed, 0)
    federation: str = setting(_text, "")  # name; empty for one made from the five above
    allow_forgotten: str = setting(_text, "")  # requests whose forgetting a training may undo

    # A task of one's own, in place of images: "chest.py:ChestXray", or "module:Class" once the
    # home keeps its sources, whose SHA-256 is the code
    task: str = setting(_text, "")
    task_options: str = setting(_text, "")  # "hidden=64,dropout=0.1"
    task_code: str = setting(_text, "")

    # Model; classes, channels and size are the data set's unless it is "none"
    model: str = setting(one_of(*MODEL_NAMES), "convnet")
    model_width: int = setting(at_least(1), 32)
    model_depth: int = setting(between(1, 8), 2)
    model_classes: int = setting(at_least(0), 0)
    model_channels: int = setting(at_least(0), 0)
    model_image_size: int = setting(at_least(0), 0)

    # Training
    rounds: int = setting(at_least(1), 20)  # K
    local_steps: int = setting(at_least(0), 10)  # T; 0 to count in epochs
    local_epochs: int = setting(at_least(0), 0)
    batch_size: int = setting(at_least(1), 64)
    lr: float = setting(positive(), 0.2)  # eta_theta
    final_lr: float = setting(between(0.0, 1e6), 0.0)  # of the last round; 0 for lr
    momentum: float = setting(between(0.0, 0.999), 0.0)
    weight_decay: float = setting(between(0.0, 1.0), 0.0)
    proximal: float = setting(between(0.0, 1e6), 0.0)  # mu of FedProx
    noise_multiplier: float = setting(between(0.0, 1e6), 0.0)  # z; 0 for no noise
    clip_norm: float = setting(at_least(MIN_CLIP), 1.0)  # C, of each example's gradient under noise
    fraction: float = setting(_share, 1.0)
    min_share: float = setting(_share, 0.5)
    over_select: float = setting(between(0.0, 10.0), 0.0)  # clients asked beyond the fraction
    aggregate: str = setting(one_of("mean", "median", "trimmed-mean"), "mean")
    clip_updates: float = setting(between(0.0, 1e9), 0.0)  # L2 norm; 0 for none
    keep_updates: int = setting(at_least(0), 0)  # Delta t of FedEraser, in rounds; 0 for none

    # Sums only
    secure_aggregation: bool = setting(Rule(lambda v: True, "be given"), False)

    # Distillation in situ
    scale: int = setting(at_least(0), 10)  # s; 0 for none
    image_start: str = setting(one_of(*STARTS), START)
    image_lr: float = setting(positive(), 0.1)  # eta_S
    image_steps: int = setting(at_least(1), 1)  # varsigma_S
    image_momentum: float = setting(between(0.0, 0.999), 0.5)
    image_batch: int = setting(at_least(0), 0)  # of a class, moved at a match in turn; 0 for all
    distill_every: int = setting(at_least(1), 5)
    distill_fraction: float = setting(between(0.0, 1.0), 1.0)

    # Request
    version: str = setting(_text, "")  # base; empty for the one in service
    data: str = setting(_text, "")  # where the version's data lie now, if they have moved
    method: str = setting(_text, DEFAULT_METHOD)
    method_options: str = setting(_text, "")  # "unlearn-lr=0.02,recover-rounds=3"
    server_samples: str = setting(_text, "")  # the coordinator's own: "test:1600" or "npz:PATH"
    forget_classes: str = setting(_text, "")  # "9" or "3,5"
    forget_clients: str = setting(_text, "")  # "hospital-a,hospital-b"
    compare: str = setting(one_of("none", "retrain"), "none")
    count: int = setting(between(1, 100), 1)  # mode "yardstick": retrained models
    verifies: str = setting(_text, "")  # mode "verify": the request that is judged again
    max_forget_accuracy: float = setting(between(0.0, 100.0), 5.0)  # percent
    max_relearning_gap: float = setting(between(0.0, 100.0), 15.0)  # points over Retrained
    accept: str = setting(one_of("passed", "not-shown"), "passed")  # verdicts that enter service
    destroy: bool = setting(Rule(lambda v: True, "be given"), False)  # synthetic sets, class level
    trial: bool = setting(Rule(lambda v: True, "be given"), False)
    asked_by: str = setting(_text, "")
    why: str = setting(_text, "")
    # Which of scale and method nobody named: where they cannot serve, what does takes their place
    by_default: str = setting(_text, "")

    # Running
    seed: int = setting(_seed, 0)
    device: str = setting(_device, "auto")
    threads: int = setting(at_least(1), 1)
    precision: str = setting(one_of("float32", "bfloat16"), "float32")
    evaluate_every: int = setting(at_least(0), 1)  # rounds; 0 for the end of a phase only
    round_timeout: float = setting(positive(), 600.0)  # seconds
    join_timeout: float = setting(positive(), 60.0)  # seconds
    engine: str = setting(one_of("inline", "ray", "superlink"), "superlink")
    connection: str = setting(_text, "")  # engine superlink: its name in Flower's config.toml
    client_gpus: float = setting(between(0.0, 64.0), 0.0)  # engine ray: GPUs a client takes

    def __post_init__(self) -> None:
        """Fill in the built-in task's data set."""
        if not self.dataset and not self.task:
            object.__setattr__(self, "dataset", DEFAULT_DATASET)

    @property
    def task_name(self) -> str:
        """The task's name on the wire; empty for the built-in one."""
        return self.task if self.task_code or not self.task else source_of(self.task).name

    @property
    def data_text(self) -> str:
        """What a person calls the data."""
        return ", ".join(filter(None, [self.task_name, self.dataset]))

    @property
    def forget(self) -> ForgetSpec:
        """What is to be forgotten or relearned.

        Raises:
            BadSetting: If both levels are named, or a class is no number.
        """
        classes = [part.strip() for part in self.forget_classes.split(",") if part.strip()]
        clients = [part.strip() for part in self.forget_clients.split(",") if part.strip()]
        if classes and clients:
            raise BadSetting("request must name classes or clients, got both; ask in two requests")
        if clients:
            return ForgetSpec("client", (), tuple(dict.fromkeys(clients)))
        if classes:
            bad = [part for part in classes if not part.isdecimal()]
            if bad:
                raise BadSetting(f"class must be a number from 0 up, got {bad[0]!r}")
            return ForgetSpec("class", tuple(dict.fromkeys(int(part) for part in classes)))
        return ForgetSpec()

    @property
    def participants(self) -> tuple[str, ...]:
        """The clients that take part, by name; empty where they are not named, and all do.

        Raises:
            BadSetting: If a name is none.
        """
        names = {part.strip() for part in self.clients.split(",") if part.strip()}
        for one in sorted(names):
            if not _name.holds(one):
                raise BadSetting(f"name in clients must {_name.words}, got {one!r}")
        return tuple(sorted(names))

    @property
    def num_participants(self) -> int:
        """How many clients take part."""
        return len(self.participants) or self.num_clients

    def takes_part(self, client: str) -> bool:
        """Return whether a client does."""
        return not self.participants or client in self.participants

    @property
    def options(self) -> dict[str, str]:
        """The method's options by name.

        Raises:
            BadSetting: If a part is not of the form name=value.
        """
        options = {}
        for part in filter(None, (p.strip() for p in self.method_options.split(","))):
            name, equals, value = part.partition("=")
            if not equals:
                raise BadSetting(f"method-options must be name=value,name=value, got {part!r}")
            options[name.strip()] = value.strip()
        return options

    def is_default(self, key: str) -> bool:
        """Return whether nobody named the setting, so that what serves may take its place."""
        return key in self.by_default.split(",")

    @property
    def superlink(self) -> str:
        """The SuperLink's name in Flower's config.toml."""
        return self.connection or "efface"

    @property
    def simulated(self) -> bool:
        """Whether the engine plays the clients on this machine."""
        return self.engine != "superlink"

    @property
    def simulation(self) -> Simulation | None:
        """What simulated clients are told of their data; None where clients are real."""
        if not self.simulated:
            return None
        return Simulation(
            dataset=self.dataset,
            partition=self.partition,
            num_clients=self.num_clients,
            max_samples=self.max_samples,
            partition_seed=self.partition_seed,
            federation=self.federation,
            task=self.task_name,
        )

    def rooted(self) -> "RunSettings":
        """Return the same with absolute paths: a later request may come from another folder."""
        directory = str(Path(self.data_dir).expanduser().absolute()) if self.data_dir else ""
        own, samples = source.rooted(self.dataset), source.rooted(self.server_samples)
        now = self.data
        if now and not source.is_own(now):
            now = str(Path(now).expanduser().absolute())
        now = source.rooted(now)
        return replace(self, dataset=own, server_samples=samples, data_dir=directory, data=now)

    def plain(self) -> dict[str, Any]:
        """Return all values by their kebab-case names."""
        return {f.name.replace("_", "-"): getattr(self, f.name) for f in fields(self)}

    def training(self) -> dict[str, Any]:
        """Return what a trained model depends on, by kebab-case names."""
        return {key: value for key, value in self.plain().items() if key in TRAINING}

    @property
    def ordinary_lr(self) -> float:
        """Learning rate of an ordinary round after training: that of training's last."""
        return self.final_lr or self.lr

    def check_training(self) -> None:
        """Check what single rules cannot see, before any work starts.

        Raises:
            BadSetting: On unknown data sets and partitions, and on nothing to do.
        """
        self.check_data()
        if not self.local_steps and not self.local_epochs:
            raise BadSetting("local-steps or local-epochs must be positive, got 0 and 0")
        if self.final_lr > self.lr:
            raise BadSetting(
                f"final-lr must be at most lr, {self.lr:g}, got {self.final_lr:g}: the rate falls "
                "to it; lower it, or raise lr"
            )
        self.check_sums()
        if self.over_select and self.fraction == 1:
            raise BadSetting(
                f"over-select must be 0 with fraction 1, got {self.over_select:g}: all clients are "
                "asked already; lower fraction"
            )
        if self.noise_multiplier:
            self._check_noise()

    def check_data(self) -> None:
        """Check what says who learns of what: data set, partition, clients that take part.

        Raises:
            BadSetting: If one of them is unknown.
        """
        kind = self.dataset.split(":")[0]
        known = (*datasets.NAMES, "npz", "folder", "none")
        if self.task:
            self._check_task()
        elif kind == source.TABLE:
            raise BadSetting(
                f"dataset must hold images, which the built-in networks take, got "
                f"{self.dataset!r}; "
                "a table needs a task of your own: --task",
                see="efface data show --help",
            )
        elif kind not in known:
            raise BadSetting(
                f"dataset must be one of {', '.join(datasets.NAMES)}, npz:PATH, folder:PATH or "
                f"none, got {self.dataset!r}",
                see="efface data list",
            )
        if kind in source.IMAGES:
            source.image_reading(source.parse(self.dataset))
        partition.parse(self.partition)
        self.check_participants()

    def check_sums(self) -> None:
        """Check what secure aggregation needs, before any work starts.

        Raises:
            BadSetting: If too few clients are asked, or single updates are to be kept.
        """
        if not self.secure_aggregation:
            return
        drawn = min(self.num_clients, max(1, round(self.fraction * self.num_clients)))
        if drawn < MIN_NODES:
            raise BadSetting(
                f"clients asked in a round must be at least {MIN_NODES} with --secure-aggregation, "
                f"got {drawn}: the sum of fewer is an answer of one to another; raise num-clients "
                "or fraction"
            )
        if self.over_select:
            raise BadSetting(
                f"over-select must be 0 with --secure-aggregation, got {self.over_select:g}: a sum "
                "waits for all its clients, or for none of those it has lost; raise fraction"
            )
        if self.keep_updates:
            raise BadSetting(
                f"keep-updates must be 0 with --secure-aggregation, got {self.keep_updates}: the "
                "coordinator sees no client's update"
            )
        if self.aggregate != "mean":
            raise BadSetting(
                f"aggregate must be mean with --secure-aggregation, got {self.aggregate}: a sum "
                "has no middle"
            )

    def _check_task(self) -> None:
        """Refuse settings of the built-in task beside another.

        Raises:
            BadSetting: Naming the first.
        """
        told, default = self.plain(), type(self)().plain()
        for key in IMAGE_NETWORK:
            if told[key] != default[key]:
                raise BadSetting(
                    f"{key} must be left out with a task of one's own, got {told[key]}; its "
                    "options are given by --task-options NAME=VALUE"
                )

    def _check_noise(self) -> None:
        """Refuse what no client trains under noise.

        Raises:
            BadSetting: Naming what to give instead.
        """
        if self.scale:
            raise BadSetting(
                f"scale must be 0 with noise-multiplier above 0, got {self.scale}: synthetic "
                "images are made from gradients without noise; add --scale 0"
            )
        if self.precision != "float32":
            raise BadSetting(
                f"precision must be float32 with noise-multiplier above 0, got {self.precision}"
            )
        if not self.task and self.model not in WITHOUT_BATCHNORM:
            raise BadSetting(
                f"model must be {' or '.join(WITHOUT_BATCHNORM)} with noise-multiplier above 0, "
                f"got {self.model}: BatchNorm mixes the examples of a batch"
            )

    def check_participants(self) -> None:
        """Refuse names of simulated clients that there are not; real ones are known by who comes.

        Raises:
            BadSetting: Naming the first.
        """
        known = {f"client-{i}" for i in range(self.num_clients)}
        for one in self.participants:
            if self.simulated and one not in known:
                raise BadSetting(
                    f"name in clients must be one of client-0 to client-{self.num_clients - 1}, "
                    f"got {one!r}"
                )

    def common(self, spec: ModelSpec) -> dict[str, Any]:
        """Return what every message says of seed, data, model and machine (see `Common`).

        Args:
            spec: The model.
        """
        return {
            "seed": self.seed,
            "simulation": self.simulation,
            "holdout": self.holdout,
            **Common.of_model(spec),
            "device": self.device,
            "threads": self.threads,
            "precision": self.precision,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.clip_norm,
        }

    @property
    def learned(self) -> Task:
        """What is learned, before it knows the data.

        Raises:
            BadSetting, CodeMismatch: If there is no such task.
        """
        if self.task:
            known = task_of(self.task, code=self.task_code).known_options()
            values = option_values(known, [t for t in self.task_options.split(",") if t.strip()])
            return task_of(self.task, canonical({**known, **values}), self.task_code)
        return ImageTask(
            net=self.model,
            num_classes=self.model_classes,
            channels=self.model_channels,
            image_size=self.model_image_size,
            width=self.model_width,
            depth=self.model_depth,
        )

    def model_spec(self, data: Data | None) -> ModelSpec:
        """Return the model to build.

        Args:
            data: The coordinator's data set, or None if it has none.

        Raises:
            BadSetting: If there is none and the sizes are not given, or the task is wrong.
        """
        task = self.learned.fitted(data)
        return identified(ModelSpec.of(task, self.task or IMAGES, self.task_code))


# The built-in task's network, of which other tasks know nothing.
IMAGE_NETWORK: Final = (
    "model",
    "model-width",
    "model-depth",
    "model-classes",
    "model-channels",
    "model-image-size",
)
# What a trained model depends on, and so what its version's card keeps.
TRAINING: Final = frozenset(
    {
        "dataset",
        "partition",
        "num-clients",
        "clients",
        "max-samples",
        "holdout",
        "partition-seed",
        "federation",
        "task",
        "task-options",
        "task-code",
        "model",
        "model-width",
        "model-depth",
        "model-classes",
        "model-channels",
        "model-image-size",
        "rounds",
        "local-steps",
        "local-epochs",
        "batch-size",
        "lr",
        "final-lr",
        "momentum",
        "weight-decay",
        "proximal",
        "noise-multiplier",
        "clip-norm",
        "fraction",
        "min-share",
        "over-select",
        "aggregate",
        "clip-updates",
        "keep-updates",
        "secure-aggregation",
        "scale",
        "image-start",
        "image-lr",
        "image-steps",
        "image-momentum",
        "image-batch",
        "distill-every",
        "distill-fraction",
        "seed",
        "threads",
        "precision",
    }
)


def parse(config: Mapping[str, Any]) -> RunSettings:
    """Read a run config; unknown keys are refused.

    Raises:
        BadSetting: Naming key, rule and value.
    """
    return RunSettings.parse(config)


def federation_name(settings: RunSettings) -> str:
    """Return the name under which versions and erasures of one set of clients belong together.

    Simulated clients are what the data set's partition makes of them; real ones have data of their
    own, and are those that one SuperLink reaches.
    """
    s = settings
    if s.federation:
        return s.federation
    who = f"{s.num_clients} clients"
    if s.participants:
        listed = ", ".join(s.participants)
        if len(listed) > LONGEST_LIST:
            listed = f"list {hashlib.sha256(listed.encode()).hexdigest()[:12]}"
        who = f"{len(s.participants)} clients ({listed})"
    if not s.simulated:
        return f"{s.data_text}, {who} of SuperLink {s.superlink}"
    of = f" of {s.num_clients}" if s.participants else ""
    subset = f", {s.max_samples} images" if s.max_samples else ""
    return f"{s.data_text}, {who}{of}, {s.partition}{subset}, seed {s.partition_seed}"


def essence(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a request's result depends on."""
    ways = [
        "mode",
        "home",
        "request",
        "engine",
        "connection",
        "client-gpus",
        "asked-by",
        "why",
        "round-timeout",
        "join-timeout",
        "data-dir",
        "data",
        "device",
        "by-default",
    ]
    if not settings.get("clients"):
        ways.append("clients")  # which rows of old do not have
    if not settings.get("over-select"):
        ways.append("over-select")
    if not settings.get("final-lr"):
        ways.append("final-lr")
    if settings.get("image-start", REAL) == REAL:
        ways.append("image-start")
    if not settings.get("image-batch"):
        ways.append("image-batch")
    if settings.get("mode") != "yardstick":
        ways.append("count")  # likewise
    if not settings.get("verifies"):
        ways.append("verifies")
    return {key: value for key, value in settings.items() if key not in ways}

"""The settings as options of the command line.

A table, not a look into `server.settings`: that module brings torch along, and `efface --help` must
answer at once. A test compares every key, type and default with `RunSettings`.

It is long because every setting has its sentence here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from inspect import Parameter
from typing import Annotated, Any, Final

import typer

from server.verify_options import OF_VERIFY

DATA: Final = "Data"
MODEL: Final = "Model"
TRAINING: Final = "Training"
DISTILLATION: Final = "Distillation"
REQUEST: Final = "Request"
RUNNING: Final = "Running"


@dataclass(frozen=True)
class Option:
    """One setting on the command line.

    Attributes:
        key: Its kebab-case name; the option is `--key`.
        default: The default of `RunSettings`; its type is the option's.
        panel: Heading in the help.
        help: What it does, with unit.
    """

    key: str
    default: str | int | float | bool
    panel: str
    help: str
    default_here: str | None = None  # where the command line's default is another

    @property
    def name(self) -> str:
        """Return the parameter's name in Python."""
        return self.key.replace("-", "_")


OPTIONS: Final = (
    Option(
        "dataset",
        "",
        DATA,
        "digits (the default), mnist, fashion-mnist, cifar10, cifar100, svhn, npz:PATH, "
        "folder:PATH (both with options, such as folder:PATH?size=64&color=grey), or none where "
        "only the clients have data; with a task of your own what its data reads, such as "
        "table:PATH?label=COLUMN.",
    ),
    Option("data-dir", "", DATA, "Folder of the published data sets' files; also EFFACE_DATA_DIR."),
    Option(
        "partition",
        "dirichlet:0.5",
        DATA,
        "How simulated clients share the data: iid, dirichlet:ALPHA, bias:Q, one-class, shards:N "
        "or natural.",
    ),
    Option("num-clients", 10, DATA, "Clients to simulate, or to wait for."),
    Option("max-samples", 0, DATA, "Use so many training examples only; 0 for all."),
    Option("holdout", 0.1, DATA, "Share of a client's examples kept for evaluation, 0 to 0.5."),
    Option("partition-seed", 0, DATA, "Seed of the partition and the held-out parts."),
    Option(
        "federation",
        "",
        DATA,
        "Name under which versions and erasures belong together; made from the data and clients "
        "if empty.",
    ),
    Option(
        "task",
        "",
        MODEL,
        "A task of your own in place of the built-in one: FILE.py:CLASS or PACKAGE:CLASS.",
    ),
    Option("task-options", "", MODEL, "Options of that task: NAME=VALUE,NAME=VALUE."),
    Option(
        "model",
        "convnet",
        MODEL,
        "convnet, lenet, resnet8, 20, 32, 44, 56, vgg11, 13, 16, 19, or resnet18.",
    ),
    Option("model-width", 32, MODEL, "Channels of a convnet's layers."),
    Option("model-depth", 2, MODEL, "Blocks of a convnet, 1 to 8."),
    Option("model-classes", 0, MODEL, "Number of classes; only with --dataset none."),
    Option("model-channels", 0, MODEL, "1 or 3; only with --dataset none."),
    Option("model-image-size", 0, MODEL, "Pixels along a side; only with --dataset none."),
    Option("rounds", 20, TRAINING, "Rounds of federated averaging."),
    Option("local-steps", 10, TRAINING, "SGD steps of a client a round; 0 to count in epochs."),
    Option("local-epochs", 0, TRAINING, "Passes over a client's data a round, instead of steps."),
    Option("batch-size", 64, TRAINING, "Examples in a batch."),
    Option("lr", 0.2, TRAINING, "Learning rate of the clients."),
    Option(
        "final-lr",
        0.0,
        TRAINING,
        "Learning rate of the last round, to which it falls along half a cosine; 0 where it stays. "
        "Rounds after training have it, too.",
    ),
    Option("momentum", 0.0, TRAINING, "Momentum of the clients' SGD, 0 to 0.999."),
    Option("weight-decay", 0.0, TRAINING, "Weight decay of the clients' SGD, 0 to 1."),
    Option("proximal", 0.0, TRAINING, "Weight of FedProx's term; 0 for plain averaging."),
    Option(
        "noise-multiplier",
        0.0,
        TRAINING,
        "Noise on the clients' gradients, in units of --clip-norm (DP-SGD), with --scale 0; 0 for "
        "none. `efface show` says what it comes to.",
    ),
    Option("clip-norm", 1.0, TRAINING, "Longest gradient of an example, where there is noise."),
    Option(
        "fraction",
        1.0,
        TRAINING,
        "Share of the clients drawn every round, above 0 to 1; recovery draws the same.",
    ),
    Option(
        "min-share", 0.5, TRAINING, "Share of the drawn clients that must answer, above 0 to 1."
    ),
    Option(
        "over-select",
        0.0,
        TRAINING,
        "With --fraction below 1: ask so many more clients, as a share of those drawn (0.2), and "
        "do without the last to answer. Weights then depend on who is fast.",
    ),
    Option(
        "aggregate",
        "mean",
        TRAINING,
        "How training rounds make one model of the clients': mean, weighted by their examples; "
        "median or trimmed-mean, which a single client cannot pull away.",
    ),
    Option(
        "clip-updates",
        0.0,
        TRAINING,
        "Shorten a client's update to this length (L2 norm) before it counts; 0 for none.",
    ),
    Option(
        "keep-updates",
        0,
        TRAINING,
        "Keep the clients' updates of the first and then every so many rounds, for methods that "
        "replay training, as long as this version is in service; 0 for none.",
    ),
    Option(
        "scale",
        10,
        DISTILLATION,
        "One synthetic example stands for so many real ones; 0 to make none. Not given, none is "
        "made where none can be.",
    ),
    Option(
        "image-start",
        "real",
        DISTILLATION,
        "What synthetic examples begin as: real examples, which they stay close to, or noise, in "
        "which nothing of an example is; noise needs a larger rate.",
    ),
    Option("image-lr", 0.1, DISTILLATION, "Learning rate of the synthetic examples."),
    Option("image-steps", 1, DISTILLATION, "Steps on them at every matching."),
    Option("image-momentum", 0.5, DISTILLATION, "Momentum of those steps, 0 to 0.999."),
    Option(
        "image-batch",
        0,
        DISTILLATION,
        "Synthetic examples of a class that a matching moves, in turn; 0 for all.",
    ),
    Option("distill-every", 5, DISTILLATION, "Match gradients at every so many SGD steps."),
    Option(
        "distill-fraction",
        1.0,
        DISTILLATION,
        "Largest share of a client's time that matching may take, 0 to 1.",
    ),
    Option("version", "", REQUEST, "Version to start from; the one in service if not given."),
    Option(
        "data",
        "",
        REQUEST,
        "Where the version's data lie now, if they have moved: the file or folder, or for a "
        "published data set the folder of its files.",
    ),
    Option(
        "method",
        "quickdrop-calibrated",
        REQUEST,
        "Method; `efface methods` lists them. auto for the shortest by estimate that can serve the "
        "request and is known to forget; to relearn, the one that forgot. Not given, and if the "
        "default cannot serve the request, as auto.",
    ),
    Option(
        "server-samples",
        "",
        REQUEST,
        "The coordinator's own examples, for methods that need some: test:NUMBER of the test "
        "part, or npz:PATH.",
    ),
    Option(
        "compare",
        "none",
        REQUEST,
        "retrain: read the retrained models that `efface yardstick` has left, or train one without "
        "the data now, as the yardstick.",
    ),
    Option(
        "count",
        1,
        REQUEST,
        "Retrained models to have, 1 to 100; those that are there are not trained again.",
    ),
    Option(
        "max-forget-accuracy",
        5.0,
        REQUEST,
        "Highest accuracy in percent that counts as forgotten; beside three retrained models or "
        "more only of a class of which none has more.",
    ),
    Option(
        "max-relearning-gap",
        15.0,
        REQUEST,
        "Most points by which the relearning curve may lie above Retrained's; not read where "
        "three retrained models or more set the limits.",
    ),
    Option(
        "accept",
        "passed",
        REQUEST,
        "Verdict that a version needs to enter service: passed, or not-shown, where no yardstick "
        "can be had (--compare retrain is one).",
    ),
    Option(
        "destroy",
        False,
        REQUEST,
        "Destroy the class's synthetic examples afterwards; relearning then needs the real ones.",
    ),
    Option("trial", False, REQUEST, "Keep the result as a trial: nothing enters service."),
    Option(
        "clients",
        "",
        RUNNING,
        "Names of the clients that take part, such as site-a,site-b; no other gets a message. All "
        "that are there if not given. The version keeps them.",
    ),
    Option("seed", 0, RUNNING, "Seed of weights, batches and clients drawn."),
    Option("device", "auto", RUNNING, "auto, cpu, or cuda."),
    Option("threads", 1, RUNNING, "Threads a client; equal results need equal threads."),
    Option("precision", "float32", RUNNING, "float32 or bfloat16."),
    Option(
        "evaluate-every", 1, RUNNING, "Evaluate after so many rounds; 0 for a phase's end only."
    ),
    Option(
        "secure-aggregation",
        False,
        RUNNING,
        "Show the coordinator sums of all clients' answers and none alone; a version that was "
        "trained so stays so.",
    ),
    Option("round-timeout", 600.0, RUNNING, "Seconds to wait for the clients of a round."),
    Option("join-timeout", 60.0, RUNNING, "Seconds to wait for the clients at the start."),
    Option(
        "engine",
        "superlink",
        RUNNING,
        "inline (this process), ray (simulation on Ray) or superlink (a running SuperLink).",
        default_here="inline",
    ),
    Option(
        "connection",
        "",
        RUNNING,
        "Name of the SuperLink in Flower's config.toml, for --engine superlink; efface if not "
        "given.",
    ),
    Option("client-gpus", 0.0, RUNNING, "GPUs a client, for --engine ray; 0.25 lets four share."),
)

# Settings that a command gives in its own words: --class, --client, --set, --by, --home, ...
NAMED_DIFFERENTLY: Final = frozenset(
    {
        "mode",
        "home",
        "request",
        "forget-classes",
        "forget-clients",
        "method-options",
        "asked-by",
        "why",
        "allow-forgotten",
        "task-code",
        "by-default",
        "verifies",
    }
)
LEARNING: Final = (DATA, MODEL, TRAINING, DISTILLATION)


def chosen(panels: Iterable[str], leave_out: Iterable[str] = ()) -> list[Option]:
    """Return the options of these panels, in the table's order."""
    wanted, unwanted = set(panels), set(leave_out)
    return [o for o in OPTIONS if o.panel in wanted and o.key not in unwanted]


def parameter(option: Option) -> Parameter:
    """Return the option as a parameter that typer reads; not given is None."""
    kind = type(option.default)
    shown = option.default_here or option.default
    default = "" if shown == "" or shown is False else f" Default {shown}."
    declared = typer.Option(
        f"--{option.key}",
        help=option.help + default,
        rich_help_panel=option.panel,
        show_default=False,
    )
    return Parameter(
        option.name,
        Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, declared],
    )


def given(options: Iterable[Option], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the command line named, by their kebab-case keys."""
    return {
        option.key: values[option.name] for option in options if values.get(option.name) is not None
    }


# A request computes as its version was trained.
_OF_THE_VERSION: Final = ("seed", "threads", "precision")
DEMO_METHOD: Final = "quickdrop"
# What each command that works with the clients takes.
OF_COMMAND: Final[Mapping[str, list[Option]]] = {
    "train": chosen([*LEARNING, RUNNING]),
    "forget": chosen([REQUEST, RUNNING], leave_out=["count", *_OF_THE_VERSION]),
    "yardstick": [
        option
        for option in chosen([REQUEST, RUNNING], leave_out=_OF_THE_VERSION)
        if option.panel == RUNNING or option.key in ("version", "data", "count")
    ],
    "relearn": chosen(
        [REQUEST, RUNNING],
        leave_out=[
            *("compare", "destroy", "max-forget-accuracy", "max-relearning-gap", "accept"),
            "count",
            *_OF_THE_VERSION,
        ],
    ),
    "verify": [option for option in chosen([REQUEST, RUNNING]) if option.key in OF_VERIFY],
    # A demonstration always compares, and starts from what it has just trained.
    "demo": [
        replace(option, default_here=DEMO_METHOD) if option.key == "method" else option
        for option in chosen(
            [*LEARNING, REQUEST, RUNNING],
            leave_out=["version", "data", "compare", "count", "trial", "destroy", "clients"],
        )
    ],
}

"""The coordinator's data: its test images, its own examples, and in a simulation all shares.

The `check_*` functions refuse what could not work, before any work starts.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from client.data.source import is_own, parse
from client.data.splits import Data
from client.data.whole import whole
from client.errors import BadSetting, DataError
from client.seeds import generator
from client.simulation.shares import shares as shares_of
from server.settings import RunSettings
from server.storage.ledger import VersionRow
from strategies.federation import Samples


def server_data(settings: RunSettings) -> Data | None:
    """Return the coordinator's data set, or None if it has none."""
    if settings.dataset == "none":
        return None
    return whole(settings.learned, settings.dataset, _data_dir(settings))


def version_data(settings: RunSettings, base: VersionRow) -> Data | None:
    """Return the coordinator's data set for a request on a version, or None if it has none.

    Raises:
        BadSetting, DataError: If it cannot be read; the message says how to name another place.
    """
    try:
        return server_data(settings)
    except (BadSetting, DataError) as error:
        raise type(error)(
            f"{error}; if the data of {base.id} have moved, say where they lie now: --data PATH"
        ) from error


def moved(settings: RunSettings) -> RunSettings:
    """Return the settings of a request with its data where `data` says they lie now.

    Raises:
        BadSetting: If its data lie in no file of the coordinator's.
    """
    if not settings.data:
        return settings
    kind = settings.dataset.partition(":")[0]
    if settings.dataset in ("digits", "none"):
        raise BadSetting(
            f"data must name files of the version's data set, got {settings.data!r} for "
            f"{settings.dataset}, which has none; leave --data out"
        )
    if is_own(settings.dataset):
        before = parse(settings.dataset)
        told = settings.data if is_own(settings.data) else f"{kind}:{settings.data}"
        now = parse(told).rooted()
        # Read as before, unless it says otherwise.
        now = replace(now, options=now.options or before.options)
        return replace(settings, dataset=now.text)
    return replace(settings, data_dir=str(Path(settings.data).expanduser().absolute()))


def keep_stores(folder: Path, before: RunSettings, now: RunSettings) -> None:
    """Have simulated clients find their stores after their data have moved.

    A population's folder is called after its data set, path included: the new name leads to it.

    Args:
        folder: Of all simulated clients' stores.
        before: Settings of the version, as its card has them.
        now: The request's.
    """
    if before.simulation is None or now.simulation is None:
        return
    old, new = folder / before.simulation.population, folder / now.simulation.population
    if old.exists() and not new.exists():
        new.symlink_to(old.resolve().name, target_is_directory=True)


def _data_dir(settings: RunSettings) -> Path | None:
    directory = settings.data_dir or os.environ.get("EFFACE_DATA_DIR")
    return Path(directory) if directory else None


def check_simulation(settings: RunSettings, data: Data | None) -> None:
    """Refuse once what every simulated client would refuse on its own.

    Raises:
        BadSetting: If there is no data to share, or not the device.
    """
    if not settings.simulated:
        return
    if data is None:
        raise BadSetting(
            "dataset must be one that simulated clients can share on engine "
            f"{settings.engine}, got none; clients with data of their own need --engine superlink",
            see="efface data list",
        )
    if settings.device.startswith("cuda") and not torch.cuda.is_available():
        raise BadSetting(
            f"device must be one that torch finds here, got {settings.device!r}; try --device auto"
        )


def check_shares(settings: RunSettings, data: Data | None) -> None:
    """Refuse once a partition that simulated clients could not share the data by.

    Raises:
        BadSetting: If it leaves a client too little, or there are not so many samples.
    """
    if not settings.simulated or data is None:
        return
    if settings.max_samples > len(data.train):
        raise BadSetting(
            f"max-samples must be at most {len(data.train)}, got {settings.max_samples}"
        )
    shares(settings, data)


def shares(settings: RunSettings, data: Data | None) -> tuple[torch.Tensor, ...] | None:
    """Return the positions of every simulated client's examples; None where clients are real."""
    s = settings
    if not s.simulated or data is None:
        return None
    # The nodes' own function, which keeps what it found for those in this process.
    return shares_of(
        s.learned,
        s.dataset,
        _data_dir(s),
        s.partition,
        s.num_clients,
        s.max_samples,
        s.partition_seed,
    )


def own_samples(settings: RunSettings, data: Data | None) -> tuple[Samples, Data | None]:
    """Return the coordinator's own examples, and its data without those taken from the test part.

    Raises:
        BadSetting: If `server-samples` reads wrong, or asks for more than there is.
    """
    kind, _, rest = settings.server_samples.partition(":")
    task = settings.learned
    if kind == "npz" and rest:
        own = whole(task, settings.server_samples)
        source = own.train
        index, left = torch.arange(len(source)), data
    elif kind == "test" and rest.isdecimal() and int(rest) > 0:
        if data is None or len(data.test) <= int(rest):
            raise BadSetting(
                f"server-samples must leave test examples to measure on, got {rest} of "
                f"{0 if data is None else len(data.test)}"
            )
        draws = generator(settings.seed, "server samples")
        order = torch.randperm(len(data.test), generator=draws)
        source, index, others = data.test, order[: int(rest)], order[int(rest) :].sort().values
        left = replace(data, test=source.subset(others))
    else:
        raise BadSetting(
            f"server-samples must be test:NUMBER or npz:PATH, got {settings.server_samples!r}"
        )
    # Images are normalised as those of the coordinator's data, or else by their own statistics.
    images = task.prepare(source.take(index), own if data is None else data)
    return Samples(images, source.labels[index]), left


def check_samples(settings: RunSettings, data: Data | None) -> None:
    """Refuse a request that needs examples of the coordinator's own without them.

    Raises:
        BadSetting: If there are none, or none of a class to forget.
    """
    if not settings.server_samples:
        raise BadSetting(
            f"method {settings.method} must have examples of the coordinator's own, got no "
            "server-samples; try --server-samples test:1600 or npz:PATH",
            see="efface methods",
        )
    samples, _ = own_samples(settings, data)
    held = set(samples.labels.tolist())
    if missing := [c for c in settings.forget.classes if c not in held]:
        raise BadSetting(
            f"server-samples must hold every class to forget, got none of {missing[0]}; add "
            "examples"
        )

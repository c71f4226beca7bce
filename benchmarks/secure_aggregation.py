"""What secure aggregation costs: seconds a client and the coordinator, bytes a client.

    nice -n 15 python benchmarks/secure_aggregation.py                 # all four cases
    nice -n 15 python benchmarks/secure_aggregation.py 320010:10       # parameters:clients

The protocol alone, without messages, training or disks. Of every case one client's whole work is
timed, each step for itself: it takes the peers' keys and shares, which are made, not their vectors.
The whole sum is run, and its mean compared with the model, where that takes less than
`--whole-within` seconds by estimate; else the coordinator's part alone is timed, on this client's
vector in place of the sum. Nobody drops out, except where a line says that one client has.
"""

import argparse
import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from client.keys import simulated_key
from client.messages import WORK, Declaration
from client.secure import member
from client.secure.context import Context
from client.secure.identity import Identity
from client.secure.keys import KEY_BYTES, SIGNATURE_BYTES, PublicKeys
from client.secure.shares import SHARE_BYTES
from client.secure.vector import Shape, decoded, encoded
from strategies.rounds.unmasking import Course, unmask

CASES = ("320010:10", "320010:100", "10000000:10", "10000000:100")
FIT = Declaration("train.fit", example={}, arrays="model", metrics=WORK, sums="mean")
SEALED_BYTES = 2 * SHARE_BYTES + 16


class Clock:
    """Adds up wall and CPU seconds by name."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu


def identity(name: str) -> Identity:
    return Identity(
        name,
        simulated_key(name, "benchmark"),
        lambda peer: simulated_key(peer, "benchmark").public_key().public_bytes_raw(),
    )


def case(parameters: int, clients: int, whole_within: float) -> None:
    names = [f"client-{i:03d}" for i in range(clients)]
    zeros = "0" * 64
    context = Context("r", "train", 1, "0" * 32, "train.fit", zeros, zeros, tuple(names))
    forms = {"model": Shape((parameters,), "float32")}
    model = {"model": np.random.default_rng(0).normal(size=parameters).astype(np.float32)}
    numbers = {"num-examples": 100.0, "samples": 640.0, "loss": 1.0}
    clock, me = Clock(), names[0]

    # Peers: keys and shares of all of them are made, because this client needs theirs.
    parts, published, sealed, commitments = {}, {}, {}, {}
    for name in names:
        begin = clock("keys") if name == me else clock("peers")
        with begin:
            parts[name], published[name] = member.begin(context, identity(name))
    for name in names:
        with clock("shares") if name == me else clock("peers"):
            parts[name], sealed[name], commitments[name] = member.share(
                parts[name], published, identity(name)
            )
    vector = answer(clock, model, numbers, forms, clients)
    with clock("open shares"):
        parts[me] = member.receive(parts[me], {n: s[me] for n, s in sealed.items() if n != me})
    with clock("mask"):
        member.mask(parts[me], vector)

    client = sum(clock.wall.values()) - clock.wall["peers"]
    busy = sum(clock.cpu.values()) - clock.cpu["peers"]
    plain = 4 * parameters
    up = 8 * len(vector) + 2 * KEY_BYTES + SIGNATURE_BYTES
    up += (clients - 1) * SEALED_BYTES + KEY_BYTES + SIGNATURE_BYTES + clients * SHARE_BYTES
    down = plain + clients * (2 * KEY_BYTES + 2 * SIGNATURE_BYTES) + (clients - 1) * SEALED_BYTES
    print(f"\n{parameters:,} parameters, {clients} clients")
    print(f"  a client: {client:.2f} s wall, {busy:.2f} s CPU: ", end="")
    print(", ".join(f"{n} {s:.3f}" for n, s in clock.cpu.items() if n != "peers"), "(CPU)")
    print(f"  up {up / 1e6:.2f} MB, {up / plain:.2f} times; down {down / 1e6:.2f} MB, ", end="")
    print(f"{down / plain:.2f} times")

    estimate = 2 * clients * (clock.wall["mask"] + clock.wall["encode"])
    total = vector.copy()
    if estimate > whole_within:
        with clock("add"):
            total += vector
        clock.wall["add"] *= clients - 1
        for name in names[1:]:
            sent = {n: s[name] for n, s in sealed.items() if n != name}
            parts[name] = member.receive(parts[name], sent)
        for dropped in (0, 1):  # what is in the sum makes no difference to the time
            survivors = names[: clients - dropped]
            course = revealed(context, parts, published, commitments, survivors)
            with clock(f"unmask, {dropped} lost"):
                unmask(total, course)
        told(clock, f" (alone: all clients' work would take about {estimate:.0f} s)")
        return
    for name in names[1:]:
        vector = answer(Clock(), model, numbers, forms, clients)
        sent = {n: s[name] for n, s in sealed.items() if n != name}
        parts[name] = member.receive(parts[name], sent)
        member.mask(parts[name], vector)
        with clock("add"):
            total += vector
    late = total - vector  # the last one's answer is lost, after all have masked
    for dropped, found in ((0, total), (1, late)):
        survivors = names[: clients - dropped]
        course = revealed(context, parts, published, commitments, survivors)
        with clock(f"unmask, {dropped} lost"):
            unmask(found, course)
        done = decoded(FIT, found, forms, num_classes=10)
        error = np.abs(done.arrays["model"] - model["model"]).max()
        if error > 1e-6:
            raise SystemExit(f"the mean must be the model to 1e-6, got an error of {error:g}")
    told(clock, f", largest error {error:.1e}")


def told(clock: Clock, more: str) -> None:
    spent = ", ".join(f"{n} {clock.wall[n]:.2f} s" for n in clock.wall if n[:3] in ("add", "unm"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"  the coordinator: {spent} wall{more}; all in one process, at most {peak:.0f} MB")


def answer(
    clock: Clock,
    model: dict[str, np.ndarray],
    numbers: dict[str, float],
    forms: dict[str, Shape],
    clients: int,
) -> np.ndarray:
    with clock("encode"):
        return encoded(FIT, numbers, model, forms, num_classes=10, num_nodes=clients)


def revealed(
    context: Context,
    parts: dict[str, member.Part],
    published: dict[str, PublicKeys],
    commitments: dict[str, bytes],
    survivors: list[str],
) -> Course:
    signed, signatures = {}, {}
    for name in survivors:
        signed[name], signatures[name] = member.confirm(parts[name], survivors, identity(name))
    # Every one checks t signatures at least; what few of them reveal is enough.
    least = survivors[: context.threshold]
    told = {name: signatures[name] for name in least}
    shares = {name: member.reveal(signed[name], told, identity(name)) for name in least}
    return Course(context, published, commitments, survivors, shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help="parameters:clients")
    parser.add_argument("--whole-within", type=float, default=120.0, help="seconds")
    asked = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for one in asked.cases:
        parameters, clients = map(int, one.split(":"))
        case(parameters, clients, asked.whole_within)


if __name__ == "__main__":
    main()

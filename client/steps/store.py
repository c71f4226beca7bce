"""What changes a node's store: its synthetic set is improved, or a request is made to last."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, ClassVar

import torch

from client import attestation
from client.attestation import Claim
from client.errors import NoSyntheticSet
from client.keys import public_text, simulated_key
from client.law import check_order
from client.learning.distillation import condense as condensed
from client.learning.models import build
from client.learning.synthetic import next_generation, redrawn
from client.messages import CLASS_3, Common, Declaration
from client.node import Answer, Node, ReplyArrays, answers
from client.orders import order_sha256
from client.policy import SUMS
from client.settings import ANY, at_least, one_of, positive, setting
from client.store import Destroyed, without
from client.wire import fingerprint, forms


@dataclass(frozen=True, kw_only=True)
class Condense(Common):
    """Improve the synthetic set over random initialisations (Zhao et al. 2021)."""

    message: ClassVar = Declaration(
        "query.condense",
        example={"outer_steps": 1, "inner_steps": 1, "batch_size": 16},
        metrics={"applied": "scalar"},  # 1 if the request had been applied already
        alone=("applied",),
    )

    outer_steps: int = setting(at_least(1))  # F
    inner_steps: int = setting(at_least(1), 50)
    batch_size: int = setting(at_least(1), 256)
    image_lr: float = setting(positive(), 0.1)
    lr: float = setting(positive(), 0.01)


@answers(Condense)
def condense(node: Node, settings: Condense) -> Answer:
    """Improve the synthetic set over random initialisations."""
    state = node.store.state()
    done = f"condense {settings.request}"
    try:
        synthetic = node.synthetic()
    except NoSyntheticSet:
        if not settings.sums_only:  # where nobody asks who has one, all are told
            raise
        return {"num-examples": 0, "applied": 0.0}, None
    if done not in state.applied:
        _, keep = node.masks(node.site.train.labels)
        better = condensed(
            node.site,
            keep,
            synthetic,
            lambda draws: build(settings.model_spec, draws).to(node.device),
            node.draws(),
            outer_steps=settings.outer_steps,
            inner_steps=settings.inner_steps,
            batch_size=settings.batch_size,
            image_lr=settings.image_lr,
            lr=settings.lr,
        )
        node.save(next_generation(node), better)
        node.store.settle(done, "condense", settings.forget)
    node.used(synthetic)
    return {"num-examples": len(synthetic), "applied": float(done in state.applied)}, None


@dataclass(frozen=True, kw_only=True)
class Settle(Common):
    """Make a verified request last: a tombstone (`forget`), or its lifting (`relearn`)."""

    message: ClassVar = Declaration(
        "query.settle",
        example={"action": "forget", "destroy": True, **CLASS_3},
        arrays="attestation",
        # 1 if the request had been applied already; synthetic images destroyed.
        metrics={"applied": "scalar", "destroyed": "scalar"},
        alone=("applied",),
        noised=True,
    )

    action: str = setting(one_of("forget", "relearn"))
    destroy: bool = setting(ANY, False)

    @property
    def says(self) -> dict[str, Any]:
        """What every site that carries out this order attests alike, but for its name."""
        forgets = self.action == "forget"
        order = order_sha256(
            request=self.request,
            action=self.action,
            target=self.forget,
            destroy=self.destroy,
            lineage=self.lineage,
            time=self.order_time,
        )
        return {
            "site": self.client,
            "request": self.request,
            "action": self.action,
            "order_sha256": order,
            "tombstone": "kept" if forgets else "lifted",
            "destroyed": self._destroyed,
            "code_sha256": fingerprint(),
        }

    @property
    def _destroyed(self) -> str:
        """What a site destroys, where its tombstone is still the order's own."""
        if not self.destroy or self.action != "forget":
            return "none"
        if self.forget.level == "client":
            return "all" if self.client in self.forget.clients else "none"
        return "classes" if self.forget.level == "class" else "none"

    def claim(self, keys: Sequence[str] = ()) -> Claim:
        """Return what the attestation of the client that is addressed must say.

        Args:
            keys: Public keys that are known of it; empty if none is. That of a simulated client
                follows from its name.
        """
        if self.simulation is None:
            return Claim(self.says, keys)
        key = public_text(simulated_key(self.client, self.simulation.population))
        return Claim({**self.says, "simulated": True}, keys or [key])


@answers(Settle)
def settle(node: Node, settings: Settle) -> Answer:
    """Make a verified request last on this node."""
    spec = settings.forget
    check_order(
        node.policy, settings, action=settings.action, destroy=settings.destroy, target=spec
    )
    key = node.policy.key()  # before anything lasts: a site without one carries nothing out
    new = node.store.settle(settings.request, settings.action, spec)
    node.store.drop_bases()
    own = node.store.state().tombstones
    destroyed, what = Destroyed(0, 0), "none"
    # What came back since is not this order's business any more, should it be sent again.
    gone = own.get(settings.request)
    if settings.destroy and settings.action == "forget" and gone is not None:
        if gone.level == "client" and settings.client in gone.clients:
            destroyed, what = node.store.destroyed(), "all"
        elif gone.level == "class":
            destroyed, what = node.store.destroyed(classes=gone.classes), "classes"
    if settings.action == "relearn" and settings.scale:
        # The next request to forget it must find its synthetic stand-ins again. What was erased
        # when the message came is not any more, unless another order says so.
        erased = [rest for t in node.erased if (rest := without(t, spec)) is not None]
        back, _ = replace(node, erased=[*erased, *own.values()]).masks(node.site.train.labels)
        if bool(back.any()):
            redrawn(node, back)
    # Whether it held anything of a class is what a site that answers in sums alone does not tell.
    alone = settings.sums_only or node.policy.answers.updates == SUMS
    forgets = settings.action == "forget"
    statement = {
        **settings.says,
        "applied": "now" if new else "before",
        "tombstone": ("kept" if gone is not None else "lifted") if forgets else "lifted",
        "destroyed": what,
        "sets": None if alone and what != "none" else destroyed.sets,
        "simulated": not node.policy.is_real,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    state = {attestation.ARRAY: _bytes(attestation.made(statement, key))}
    return {
        "num-examples": node.count(node.site.train),
        "applied": float(not new),
        "destroyed": destroyed.examples,
    }, ReplyArrays(state, forms(state))


def _bytes(document: bytes) -> torch.Tensor:
    """Return bytes as a uint8 array.

    A function of its own: Ray cannot pickle one that names both `torch` and an attribute `classes`,
    which it takes for the module torch.classes.
    """
    return torch.frombuffer(bytearray(document), dtype=torch.uint8)

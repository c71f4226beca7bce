"""This project's training, on the engine that is named: inline or ray."""

import os
import sys
import tempfile
from pathlib import Path

from load import ROOT, Clock, Load

sys.path.insert(0, str(ROOT))


class Rounds:
    """Listens to a request: a round is over when the coordinator says so."""

    def __init__(self) -> None:
        self.clock = Clock()

    def round(self, done: object, scores: object) -> None:
        self.clock.round()

    def note(self, text: str) -> None:
        pass


def main() -> None:
    """Measure."""
    from safetensors.numpy import load_file

    from server.runner import run
    from server.settings import RunSettings

    load = Load.read(sys.argv[1])
    told = Rounds()
    with tempfile.TemporaryDirectory(prefix="efface-compare-") as home:
        os.environ["RAY_TMPDIR"] = "/tmp"
        settings = RunSettings(
            mode="train",
            engine=sys.argv[3],
            home=home,
            dataset=load.dataset,
            data_dir=load.data_dir,
            partition="iid",
            max_samples=load.images,
            holdout=0.0,
            num_clients=load.clients,
            model="convnet",
            model_width=load.width,
            model_depth=2,
            rounds=load.rounds,
            local_steps=0,
            local_epochs=1,
            batch_size=load.batch,
            lr=load.lr,
            scale=0,
            evaluate_every=load.rounds,
        )
        run(settings.check(), told)
        (file,) = (Path(home) / "versions").rglob("*.safetensors")
        told.clock.finish(load_file(file), Path(sys.argv[2]))


if __name__ == "__main__":
    main()

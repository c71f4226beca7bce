"""Efface from Python: train over several clients, make the model forget, and see the evidence.

Example:
    ```python
    import efface

    federation = efface.Federation.inline("digits", num_clients=3)
    version = federation.train(rounds=8)
    result = federation.forget(class_=9, compare="retrain")
    if result.verdict:
        network = result.version.model()
    ```

The command line does the same through the same functions: a federation that one has trained the
other can go on with.
"""

from client.errors import BadSetting, DataError, EffaceError
from client.task import Data, Examples, Task
from efface.federation import Federation
from efface.listed import Erased, Plan
from efface.progress import Progress
from efface.result import Result, Verdict
from efface.version import Version
from server.evidence.record import Costs, Forgotten, Record
from server.evidence.scores import Curve, ModelScores
from server.evidence.verdict import Finding
from server.requests.execution import NotShown, VerificationFailed
from server.requests.intake import AlreadyDone
from server.storage.ledger import RequestRow

__all__ = [
    "AlreadyDone",
    "BadSetting",
    "Costs",
    "Curve",
    "Data",
    "DataError",
    "EffaceError",
    "Erased",
    "Examples",
    "Federation",
    "Finding",
    "Forgotten",
    "ModelScores",
    "NotShown",
    "Plan",
    "Progress",
    "Record",
    "RequestRow",
    "Result",
    "Task",
    "Verdict",
    "VerificationFailed",
    "Version",
]

"""Import torchvision where its compiled operators do not fit the installed torch.

The registry's torchvision is built against a CUDA torch. Beside a CPU-only torch its library
`_C.so` does not load, so nobody declares the operators `nms` and `qnms`, for which torchvision's
import then registers shape functions: it fails with `operator torchvision::nms does not exist`.
Efface needs only the data sets and models, which use neither operator, so declaring the two
schemas is enough.
"""

import functools
import importlib
import threading
from types import ModuleType

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_IMPORTING = threading.Lock()  # two threads must not both declare the schemas


def import_torchvision(submodule: str = "") -> ModuleType:
    """Return torchvision, or its `submodule` (for instance "datasets"), imported.

    The plain import is tried first, so that a torchvision that works is used as it is, operators
    included. A failed import leaves some of torchvision's submodules in `sys.modules` (here, or
    in somebody's earlier attempt): they are complete modules that the second import takes up.

    Raises:
        ImportError: If torchvision is not installed.
        RuntimeError: torchvision's own error, if its import fails for another reason (for
            instance, another CUDA version than torch's).
    """
    with _IMPORTING:
        try:
            importlib.import_module("torchvision")
        except RuntimeError as error:
            if "operator torchvision::" not in str(error):
                raise
            _declare_missing_operators()
    return importlib.import_module(f"torchvision.{submodule}" if submodule else "torchvision")


@functools.cache  # the declarations last as long as the returned object
def _declare_missing_operators() -> object:
    import torch

    # A fragment, not a definition: the namespace may already be defined by someone else.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library

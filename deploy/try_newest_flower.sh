#!/bin/sh
# Runs the tests that start real Flower processes against another release of Flower than the pinned
# one, in an environment of its own. docs/flower-next.md says what to expect.
#
#   deploy/try_newest_flower.sh [FOLDER] [FLOWER] [TEST ...]
#
# FOLDER   where the environment is made, and found again (default: a temporary one)
# FLOWER   what pip is to install over the pin (default: flwr, the newest)
# TEST     what pytest runs (default: those of the site's processes and of a real SuperLink)
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:-$(mktemp -d)}
flower=${2:-flwr}
if [ $# -ge 2 ]; then shift 2; else shift $#; fi
[ $# -gt 0 ] || set -- tests/client/operator tests/server/nodes/test_superlink.py
if [ ! -x "$folder/bin/efface" ]; then
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --editable "$here[dev]"
fi
# pip says that this breaks our pins (flwr, cryptography): that is what is tried.
"$folder/bin/pip" install --quiet --upgrade "$flower"
"$folder/bin/pip" list 2>/dev/null | grep -E '^(flwr|cryptography|grpcio|protobuf) '
cd "$here"
PATH="$folder/bin:$PATH" PYTHONPATH="$here" exec "$folder/bin/python" -m pytest -q "$@"

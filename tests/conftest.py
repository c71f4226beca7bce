"""What holds for all tests."""

import os

# Before anything imports torch: on images this small a second thread gains nothing, and on a busy
# machine waiting for it costs tenfold. Set here, not in torch, so that child processes have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

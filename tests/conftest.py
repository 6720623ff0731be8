"""Settings of every test run."""

import os

# One thread of arithmetic: tests are small, and results do not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

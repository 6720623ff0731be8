"""Settings of every test run."""

import os

import hypothesis

# One thread of arithmetic: tests are small, and results do not depend on the machine's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples in every run, however slow the machine.
hypothesis.settings.register_profile("zoonet", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("zoonet")

"""What one process can test: Keras has one backend a process, which KERAS_BACKEND names (`make keras`)."""

import os

KERAS = ["src/mednorm/keras", "src/mednorm/surgery/port.py", "tests/keras"]
TRITON = ["src/mednorm/kernels/triton_loops.py"]  # imports Triton, which few machines have
collect_ignore = TRITON + ([] if os.environ.get("KERAS_BACKEND") else KERAS)

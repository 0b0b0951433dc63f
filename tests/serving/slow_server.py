"""`ultrafastbert serve` with a model that computes nothing before a file exists.

python -m tests.serving.slow_server FILE OPTIONS...
"""

import sys
import time
from pathlib import Path

from ultrafastbert.cli import main
from ultrafastbert.serving.engine import Engine

gate = Path(sys.argv[1])
run = Engine.run
calls = 0


def held(self, batch):
    global calls
    calls += 1
    while calls > 1 and not gate.exists():  # the first call is that of the start
        time.sleep(0.005)
    return run(self, batch)


Engine.run = held
main("serve", sys.argv[2:])

"""Runs `ultrafastbert pretrain` many times in processes of their own, forked after the imports, and stops some.

    python -m tests.faults.driver CONFIG OUTPUT_DIR CACHE_DIR SEED KILLS LIMITS

It prints lines of JSON: how each process ended. KILLS processes are killed by SIGKILL at a random file operation
(open, rename, remove, ...) or after a random time; LIMITS processes cannot write files beyond a random size, as on a
full disk. Processes run on the same directories, the last one without a fault.
"""

import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from ultrafastbert.cli import main

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.truncate", "shutil.rmtree")
UNEXPECTED = 99


def run(words: list[str], before: Callable[[], None], kill_after: float | None = None) -> int:
    """Runs the command in a forked process; the exit code, negative for a signal."""
    if (pid := os.fork()) == 0:
        code = UNEXPECTED
        try:
            before()
            main("pretrain", words)
            code = 0
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def count_operations(within: Path, at: int, then: Callable[[int], None]) -> Callable[[], None]:
    """What makes a process call `then` with the number of each operation below `within` from the `at`-th on."""

    def install() -> None:
        count = 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if event in OPERATIONS and arguments and str(arguments[0]).startswith(str(within)):
                count += 1
                if count >= at:
                    then(count)

        sys.addaudithook(hook)

    return install


def limit_file_size(size: int) -> Callable[[], None]:
    """What makes writing beyond this size fail in a process."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def drive(config: str, output: Path, cache: Path, seed: int, kills: int, limits: int) -> None:
    """See the module's docstring."""
    root, generator = output.parent, random.Random(seed)

    def words(name: str) -> list[str]:
        return ["--config", config, f"--output_dir={output}{name}", f"--data.cache_dir={cache}{name}"]

    counter = root / "count"
    descriptor = os.open(counter, os.O_CREAT | os.O_RDWR)
    started = time.monotonic()
    whole = run(
        words("-whole"), count_operations(root, 1, lambda n: os.pwrite(descriptor, f"{n:9}".encode(), 0) and None)
    )
    seconds, operations = time.monotonic() - started, int(counter.read_text())
    print(json.dumps({"fault": "none", "code": whole, "operations": operations}), flush=True)
    for index in range(kills):
        if index % 4 == 3:
            code = run(words(""), lambda: None, kill_after=generator.uniform(0, seconds))
        else:
            at = generator.randint(1, max(2, operations // 2))  # later ones would mostly come after the end
            code = run(words(""), count_operations(root, at, lambda n: os.kill(os.getpid(), signal.SIGKILL)))
        print(json.dumps({"fault": "kill", "code": code}), flush=True)
    for _ in range(limits):
        code = run(words(""), limit_file_size(int(10 ** generator.uniform(1, 5))))
        print(json.dumps({"fault": "limit", "code": code}), flush=True)
    print(json.dumps({"fault": "none", "code": run(words(""), lambda: None)}), flush=True)


if __name__ == "__main__":
    drive(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), *map(int, sys.argv[4:]))

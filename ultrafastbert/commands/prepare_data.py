"""`ultrafastbert prepare-data`."""

import resource
import sys

from ultrafastbert.pretraining.data.arguments import DataArguments
from ultrafastbert.pretraining.data.prepare import prepare


def prepare_data(arguments: DataArguments) -> None:
    """Prepares text for pretraining, and prints the directory of the prepared data.

    Raises:
        DataError: a source is missing, broken or too small, or the cache directory cannot be written.
    """
    packed = prepare(arguments)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    workers = f", of the largest worker process {worker:,.0f} MiB" if worker else ""
    print(f"Peak memory {own:,.0f} MiB{workers}", file=sys.stderr)
    print(packed.directory)

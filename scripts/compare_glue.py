"""Compares two results of fine-tuning: `python scripts/compare_glue.py out/a/glue.json out/b/glue.json`."""

import argparse
import sys
from pathlib import Path

from ultrafastbert.errors import UserError
from ultrafastbert.training.glue_plots import compare, draw_comparison, read_result, render_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a", metavar="A", type=Path, help="a glue.json, or the directory that holds it")
    parser.add_argument("b", metavar="B", type=Path, help="likewise, of the baseline")
    parser.add_argument(
        "--output",
        metavar="FILE.png",
        type=Path,
        default=Path("compare_glue.png"),
        help="the picture, which replaces an older one (default: compare_glue.png)",
    )
    arguments = parser.parse_args()
    try:
        comparison = compare(read_result(arguments.a), read_result(arguments.b))
        draw_comparison(comparison, arguments.output)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(render_comparison(comparison))
    print(f"\nThe picture is {arguments.output}.")


if __name__ == "__main__":
    main()

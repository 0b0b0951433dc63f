"""Every experiment of the comparison at toy size, on digits."""

from ultrafastbert.experiments.arguments import (
    CompareArguments,
    ExpertsArguments,
    InferenceSizeArguments,
    LayerTrainingArguments,
    TimingArguments,
    VitArguments,
    WidthsArguments,
)


def toy_arguments(output, experiment="all", **options):
    """Two or three epochs of small layers; keywords are options of `CompareArguments`."""
    sgd = LayerTrainingArguments("sgd", 0.2, 256, epochs=3, patience=3)
    adam = LayerTrainingArguments("adam", 0.01, 4096, epochs=3, patience=3)
    short = LayerTrainingArguments("adam", 0.01, 256, epochs=2, patience=2)
    return CompareArguments(
        experiment=experiment,
        output_dir=str(output),
        workers=options.pop("workers", 1),
        widths=WidthsArguments([8, 16], [4, 2], runs=2, training=sgd),
        inference_size=InferenceSizeArguments([2, 4], [1, 2], runs=1, training=sgd),
        experts=ExpertsArguments([16, 32], 8, 4, runs=2, training=adam),
        vit=VitArguments(16, [8, 4], [1.0, float("inf")], 16, 2, 2, training=short),
        timing=TimingArguments([2, 4], 2, 4, 16, [1, 8], seconds=0.001),
        **options,
    )

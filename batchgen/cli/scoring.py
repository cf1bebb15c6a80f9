"""Commands on the quality of an output's images: score, select."""

import sys
from dataclasses import asdict

import click

from batchgen.cli.shared import (
    OK,
    ROWS_FAILED,
    address_option,
    choice,
    json_option,
    named_output,
    say,
    say_json,
    stdout,
    workers_option,
)
from batchgen.errors import InputError
from batchgen.options import Device, Dtype
from batchgen.scoring.metrics import METRICS

__all__ = ["score", "select"]

_METRICS = "\n".join(f"  {metric.name:<12}{metric.about}" for metric in METRICS.values())


@click.command(epilog=f"\b\nMetrics:\n{_METRICS}")
@click.argument("output")
@click.option("--metric", "-k", "metrics", multiple=True, required=True, metavar="NAME", help="May be repeated.")
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    metavar="NAME=MODEL",
    help="What a metric reads: a folder, a file, a hub id. Default: builtin-clip for clip_score and pickscore.",
)
@click.option("--reference", metavar="FOLDER", help="Real images, for fid, kid and lpips.")
@click.option(
    "--features", metavar="MODEL", help="What sees the images that fid and kid compare. Default: builtin-clip."
)
@click.option("--by", multiple=True, metavar="COLUMN", help="Group images for fid and kid; may be repeated.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Images of one call. Default: 16.")
@click.option("--dtype", type=choice(Dtype), help="Precision of the models; auto: float32.")
@click.option("--device", type=choice(Device), help="Default: CUDA if there is one.")
@workers_option
@address_option
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights too, with torch's weights-only loader.")
@json_option
def score(
    output: str,
    metrics: tuple[str, ...],
    models: tuple[str, ...],
    reference: str | None,
    features: str | None,
    by: tuple[str, ...],
    batch_size: int | None,
    dtype: str | None,
    device: str | None,
    workers: int | None,
    address: str | None,
    allow_pickle: bool,
    as_json: bool,
) -> None:
    """Score an output's images, into tables beside the dataset.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options].

    Scores go to OUTPUT/scores/METRIC/SHARD.parquet and join on id and fingerprint. What is scored already is not scored
    again, after a kill the same command goes on. An image that cannot be scored is null, with the reason beside it.

    \b
    Examples:
      batchgen score out/quickstart --metric clip_score --metric sharpness
      batchgen score out/quickstart --metric duplicates
      batchgen score out/compare --metric fid --metric kid --reference photos --by scheduler
      batchgen score s3://bucket/set --metric pickscore --model pickscore=yuvalkirstain/PickScore_v1
      batchgen score out/set -k aesthetic -m aesthetic=models/clip-vit-l-14 -m aesthetic.head=models/head.safetensors
    """
    from batchgen.report.display import print_scores
    from batchgen.scores import BATCH, ScoringJob
    from batchgen.scores import score as score_output

    uri, options = named_output(output)
    flags = {"reference": reference, "features": features}
    named = {name: model for name, model in flags.items() if model is not None}
    job = ScoringJob(
        output=uri,
        metrics=metrics,
        models={**dict(map(_named_model, models)), **named},
        by=tuple(dict.fromkeys(by)),
        device=Device(device or Device.AUTO),
        dtype=Dtype(dtype or Dtype.AUTO),
        batch_size=batch_size or BATCH,
        workers=workers,
        address=address,
        allow_pickle=allow_pickle,
        storage_options=options,
    )
    summary = score_output(job, lambda line: say(line, err=True))
    if as_json:
        say_json({"output": uri, **asdict(summary)})
    else:
        print_scores(summary, stdout())
    for metric, count in summary.failed.items():
        say(f"{count:,} of {summary.rows:,} rows have no {metric}; the next command tries them again", err=True)
    sys.exit(ROWS_FAILED if summary.failed else OK)


def _named_model(text: str) -> tuple[str, str]:
    name, separator, model = text.partition("=")
    if not separator or not name or not model:
        raise InputError(f"--model {text}: write it as NAME=MODEL, with the metric's name")
    return name, model


@click.command()
@click.argument("output")
@click.option(
    "--where", required=True, metavar="CONDITION", help="On columns of metadata and scores, with and, or, not, None."
)
@click.option("--output", "-o", "manifest", required=True, metavar="MANIFEST", help="Write the rows here, as Parquet.")
@json_option
def select(output: str, where: str, manifest: str, as_json: bool) -> None:
    """Write the rows that a condition selects as a manifest: parameters, carried columns, scores.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options]. Nothing in it
    changes.

    CONDITION is written as in Python: comparisons (== != < <= > >=), in ("a", "b"), is None, and, or, not, brackets.
    An absent cell fits no comparison.

    \b
    Examples:
      batchgen select out/quickstart --where "clip_score > 25" --output best.parquet
      batchgen select out/quickstart --where "duplicate_of is None and sharpness >= 50" -o out/distinct.parquet
    """
    from batchgen.scoring.selection import select as select_rows

    uri, options = named_output(output)
    found = select_rows(uri, where, manifest, options)
    if as_json:
        say_json({"manifest": manifest, **asdict(found)})
    say(f"{found.selected:,} of {found.rows:,} rows: {manifest}", err=True)

"""Commands for evaluators elsewhere: export, join."""

from dataclasses import asdict

import click

from batchgen.cli.shared import json_option, named_output, say, say_json

__all__ = ["export", "join"]


@click.command()
@click.argument("output")
@click.option("--to", type=click.Choice(["geneval"]), required=True, help="Whose layout.")
@click.option("--output", "-o", "folder", required=True, metavar="FOLDER", help="Where it goes: an empty folder.")
@json_option
def export(output: str, to: str, folder: str, as_json: bool) -> None:
    """Write an output's images in the layout of an evaluator, as PNG.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options].

    geneval: 00000/metadata.jsonl and 00000/samples/00000.png, of rows that carry GenEval's tag and include; the
    manifest is its prompts/evaluation_metadata.jsonl. rows.csv says which image is which row, for `join`.

    \b
    Example:
      batchgen export out/geneval --to geneval --output out/geneval-images
    """
    from batchgen.exports import export as export_output

    uri, options = named_output(output)
    done = export_output(uri, to, folder, options)
    if as_json:
        say_json(asdict(done))
    say(f"{done.images:,} images of {done.prompts:,} prompts: {done.folder}", err=True)


@click.command()
@click.argument("output")
@click.argument("results")
@click.option(
    "--name", metavar="NAME", help="Of the scores, and before their columns' names. Default: the file's name."
)
@click.option("--exported", metavar="FOLDER", help="The export that was evaluated, where results have file names.")
@json_option
def join(output: str, results: str, name: str | None, exported: str | None, as_json: bool) -> None:
    """Bring an evaluator's results back to their rows, as scores.

    OUTPUT is a folder or s3://bucket/prefix, or a job file that names it and its [storage_options].

    RESULTS is a table (.jsonl, .csv, .parquet, ...) with `id`, or with `filename` of an export's images. Its columns go
    to OUTPUT/scores/NAME/, where `report`, `select` and pandas find them; those that OUTPUT has already do not.

    \b
    Examples:
      batchgen join out/geneval results.jsonl --name geneval --exported out/geneval-images
      batchgen join out/set judged.csv --name judge
    """
    from batchgen.scoring.results import join_results

    uri, options = named_output(output)
    done = join_results(uri, results, name=name, exported=exported, storage_options=options)
    if as_json:
        say_json({"output": uri, **asdict(done)})
    say(f"{done.joined:,} of {done.results:,} results are of rows here: {', '.join(done.columns)}", err=True)

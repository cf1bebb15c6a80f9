"""Commands that write a manifest: sweep, manifest."""

from dataclasses import asdict

import click

from batchgen.cli.shared import json_option, named_job, say, say_json, stdout

__all__ = ["manifest", "sweep"]


@click.command()
@click.argument("spec")
@click.option("--output", "-o", metavar="MANIFEST", help="Write the rows here, as Parquet. Default: only count them.")
@json_option
def sweep(spec: str, output: str | None, as_json: bool) -> None:
    """Compile axes and prompt templates into a manifest.

    SPEC is a TOML file with the table [sweep], which manifests/README.md describes. `run`, `plan` and `validate` take
    it as it is; a manifest of its own is for other tools. All rows are checked, and counted with an estimate, before
    any is written.

    \b
    Examples:
      batchgen sweep jobs/compare.toml
      batchgen sweep jobs/compare.toml --output out/compare.parquet
    """
    from batchgen.driver import plan as plan_job
    from batchgen.report.display import plan_table, sweep_table
    from batchgen.sweeps import read_summary, write_manifest

    job = named_job(spec, {})
    found, summary = read_summary(job.manifest), plan_job(job)
    rows = None if output is None else write_manifest(job.manifest, output)
    if as_json:
        say_json({"manifest": output, **asdict(found), "plan": asdict(summary)})
        return
    for line in summary.notices:
        say(line, err=True)
    if output is not None and job.defaults:
        named = ", ".join(job.defaults)
        say(
            f"{output} goes without the job's [defaults] ({named}); what it shall have stands in [sweep.cells]",
            err=True,
        )
    stdout().print(sweep_table(found), plan_table(summary))
    if output is not None:
        say(f"wrote {rows:,} rows: {output}", err=True)


@click.command()
@click.argument("folder")
@click.option("--output", "-o", metavar="MANIFEST", required=True, help="Write the rows here, as Parquet.")
@json_option
def manifest(folder: str, output: str, as_json: bool) -> None:
    """Read back from images how they were made, as a manifest.

    FOLDER holds PNG, JPEG or WebP files of A1111's web UI, ComfyUI, InvokeAI or SwarmUI. What they say and no column
    takes, and what is needed and not in them, is told by file. The images of a run will not be the same: programs
    draw noise in ways of their own.

    \b
    Example:
      batchgen manifest ~/webui/outputs/txt2img-images --output old.parquet
    """
    from batchgen.embedded import import_images

    found = import_images(folder, output)
    if as_json:
        say_json({"manifest": output, **asdict(found)})
        return
    for file, unread in found.unread.items():
        say(f"{file}: not read: {'; '.join(unread)}")
    for file in found.silent:
        say(f"{file}: says nothing of how it was made")
    say(f"wrote {found.rows:,} rows: {output}", err=True)

"""The command on a prompt: explain."""

from typing import Any

import click

from batchgen.cli.shared import json_option, model_option, say, say_json, stdout
from batchgen.errors import InputError

__all__ = ["explain"]


@click.command()
@click.argument("prompt")
@model_option
@click.option("--model-config", metavar="FOLDER", help="Diffusers folder with the layout of a .safetensors file.")
@click.option(
    "--scheduler",
    "samplers",
    multiple=True,
    metavar="NAME",
    help='Class or name, like "DPM++ 2M Karras"; more are compared with the first. Default: the model\'s.',
)
@click.option(
    "--steps", "num_inference_steps", type=int, metavar="N", help="Sampling steps. Default: the model's, else 25."
)
@click.option("--seed", type=click.IntRange(min=0), metavar="N", help="Seed of the noise. Default: 0.")
@click.option(
    "--guidance-scale",
    type=float,
    metavar="X",
    help="Follow the prompt so strongly. Default: the model's, else 7.5.",
)
@click.option(
    "--prompt-syntax", type=click.Choice(["plain", "a1111"]), help="Whether (word:1.2) is a weight. Default: plain."
)
@click.option("--clip-skip", type=int, metavar="N", help="Last layers of the text encoder to leave out. Default: none.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="COLUMN=VALUE",
    help="Any other column of a manifest, as a CSV file has it; may be repeated.",
)
@click.option("--output", "-o", metavar="FOLDER", help="Write the figures and explain.json here.")
@click.option("--every", type=click.IntRange(min=1), metavar="N", help="Show every Nth step. Default: nine of them.")
@click.option(
    "--columns", type=click.IntRange(min=1), metavar="N", help="Tiles side by side. Default: what a screen is wide for."
)
@click.option("--attention", is_flag=True, help="Also draw where in the image each token's attention goes.")
@json_option
def explain(
    prompt: str,
    model: str | None,
    model_config: str | None,
    samplers: tuple[str, ...],
    settings: tuple[str, ...],
    output: str | None,
    every: int | None,
    columns: int | None,
    attention: bool,
    as_json: bool,
    **cells: Any,
) -> None:
    """Show a prompt's tokens, where it is cut, what its tags did and the noise levels of samplers.

    In a folder, also as figures: a chart of the noise levels (schedule.png), what the model is given at each step and
    what it takes the image for (steps.png), the image itself (image.png), and with --attention where its
    cross-attention goes (attention.png).

    \b
    Examples:
      batchgen explain "a red cube on a checkered floor"
      batchgen explain "a (red:1.3) cube" --prompt-syntax a1111 --scheduler "Euler a" --steps 8 --output out/cube
      batchgen explain "a red cube" --scheduler DDIM --scheduler "DPM++ 2M Karras" --output out/two --attention
      batchgen explain "a red cube" --set image=manifests/images/blue-cube.png --set strength=0.6 --output out/from
    """
    from batchgen.report.explain import explain as explain_prompt
    from batchgen.report.explain import explanation_tables, read_settings
    from batchgen.report.figures import Choice, write_figures

    if output == "":
        raise InputError("--output is empty; is a variable unset?")
    for flag, value in {"--every": every, "--columns": columns, "--attention": attention or None}.items():
        if value is not None and output is None:
            raise InputError(f"{flag} says what figures show; give --output, too")
    said = {**cells, "scheduler": samplers or None}
    explanation = explain_prompt(
        {"prompt": prompt, **cells},
        samplers=samplers,
        settings=read_settings(settings, said),
        model=model or "builtin",
        model_config=model_config,
    )
    if as_json:
        say_json(explanation.record())
    else:
        for part in explanation_tables(explanation):
            stdout().print(part)
    choice = Choice(every=every, columns=columns, attention=attention)
    for place in () if output is None else write_figures(explanation, output, choice):
        say(f"wrote {place}", err=True)

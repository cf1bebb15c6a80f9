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
@click.option("--scheduler", metavar="NAME", help='Class or name, like "DPM++ 2M Karras". Default: the model\'s.')
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
@click.option("--output", "-o", metavar="FOLDER", help="Write explain.json, schedule.png and steps.png here.")
@json_option
def explain(
    prompt: str, model: str | None, model_config: str | None, output: str | None, as_json: bool, **cells: Any
) -> None:
    """Show a prompt's tokens, where it is cut, the sampler's noise levels and, in a folder, an image of every step.

    \b
    Examples:
      batchgen explain "a red cube on a checkered floor"
      batchgen explain "a (red:1.3) cube" --prompt-syntax a1111 --scheduler "Euler a" --steps 8 --output out/cube
    """
    from batchgen.report.explain import explain as explain_prompt
    from batchgen.report.explain import explanation_tables, write_explanation

    if output == "":
        raise InputError("--output is empty; is a variable unset?")
    explanation = explain_prompt({"prompt": prompt, **cells}, model=model or "builtin", model_config=model_config)
    if as_json:
        say_json(explanation.record())
    else:
        for part in explanation_tables(explanation):
            stdout().print(part)
    for place in () if output is None else write_explanation(explanation, output):
        say(f"wrote {place}", err=True)

"""The recipe's command line: `python -m jobs.builtin STAGE`."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from batchgen import builtin
from batchgen.errors import BatchgenError
from jobs.builtin.progress import say
from jobs.builtin.recipe import Folders, Recipe

if TYPE_CHECKING:
    from jobs.builtin.stages import Workshop

WEIGHTS = Path(builtin.__file__).parent / "weights" / "builtin"
TRAINED = frozenset({"autoencoder", "text", "unet", "scorer"})
STAGES = ("render", "autoencoder", "text", "latents", "unet", "scorer")
COMPANIONS = (
    "controlnet-edges", "depth-estimator", "depth", "ink", "ruby-ring", "inpainting", "controlnet-depth", "vae-sharp",
    "upscaler-autoencoder", "upscaler",
)  # fmt: skip
CHECKED = (*COMPANIONS, "clip")  # which the text stage leaves
SHIPPED = tuple(name for name in CHECKED if name != "upscaler-autoencoder")  # which is in the upscaler's folder
CHECKED_SCENES = 64
GUIDANCES = (1.0, 3.0, 5.0, 7.5)


def _workshop(options: dict[str, Any]) -> "Workshop":
    from jobs.builtin.stages import Workshop
    from jobs.builtin.training import Hardware

    bfloat16 = {"auto": None, "float32": False, "bfloat16": True}[options["precision"]]
    return Workshop(
        recipe=Recipe(seed=options["seed"], scale=options["scale"], keep_tower=options["keep_tower"]).scaled(),
        folders=Folders(root=options["work"]),
        hardware=Hardware(device=options["device"], processes=options["processes"], bfloat16=bfloat16),
        log=say,
    )


class Errors(click.Group):
    """A group that turns the package's errors into one line and their exit code."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BatchgenError as error:
            click.echo(f"Error: {error}", err=True)
            context.exit(error.exit_code)


@click.group(cls=Errors, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--work", type=click.Path(path_type=Path), default=Path("builtin-work"), show_default=True,
              help="Folder for renders, latents and checkpoints (100 MB a thousand scenes, and 2 GB).")  # fmt: skip
@click.option("--seed", default=0, show_default=True, help="Decides scenes, captions and weights.")
@click.option("--scale", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True),
              help="Multiplies scenes and steps; 1 is the full recipe, about 6 hours on 2 cores, "
                   "and 2 more for the companions.")  # fmt: skip
@click.option("--keep-tower", is_flag=True, help="Leave the text tower as it is in the unet stage: exported companions "
              "that read it and have a UNet of their own stay valid. For going on from an adopted model.")  # fmt: skip
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda or cuda:N.")
@click.option("--processes", default=2, show_default=True, help="Training processes of one thread each, on the CPU.")
@click.option("--precision", type=click.Choice(["auto", "float32", "bfloat16"]), default="auto", show_default=True)
@click.pass_context
def main(context: click.Context, /, **options: Any) -> None:
    """Make the built-in model from nothing but code.

    Every stage resumes where it was killed; the same command goes on.

    \b
    python -m jobs.builtin --work /tmp/work --scale 0.3 train
    python -m jobs.builtin --work /tmp/work evaluate --count 64
    """
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # a bar a file would drown the progress lines
    context.obj = options


def _add_stage(stage: str) -> None:
    def run(options: dict[str, Any], steps: int | None = None) -> None:
        shop = _workshop(options)
        from jobs.builtin.stages import TRAINING

        TRAINING[stage](shop if steps is None else shop.with_steps(stage, steps))

    command = click.pass_obj(run)
    if stage in TRAINED:
        command = click.option("--steps", type=click.IntRange(min=1), help="Steps, instead of the recipe's.")(command)
    main.command(stage, help=f"Run the {stage} stage.")(command)


for _stage in STAGES:
    _add_stage(_stage)


def _add_companion(name: str) -> None:
    def run(options: dict[str, Any], steps: int | None = None) -> None:
        shop = _workshop(options)
        from jobs.builtin.companions.stages import run_companion

        run_companion(shop if steps is None else shop.with_steps(name, steps), name)

    command = click.pass_obj(run)
    command = click.option("--steps", type=click.IntRange(min=1), help="Steps, instead of the recipe's.")(command)
    main.command(name, help=f"Train the companion {name}.")(command)


for _companion in COMPANIONS:
    _add_companion(_companion)


@main.command()
@click.option("--model", type=click.Path(path_type=Path), default=WEIGHTS, show_default="the package's own weights")
@click.pass_obj
def adopt(options: dict[str, Any], model: Path) -> None:
    """Take an exported model as this folder's finished base, to train companions for it or to go on from it."""
    from jobs.builtin.stages import adopt as adopt_model

    adopt_model(_workshop(options), model)


@main.command()
@click.option("--output", type=click.Path(path_type=Path), default=WEIGHTS, show_default="the package's own weights")
@click.option("--note", default="", help="A sentence for the model card, on what was unusual about the run.")
@click.pass_obj
def export(options: dict[str, Any], output: Path, note: str = "") -> None:
    """Write the finished stages as a diffusers folder with its model card."""
    from jobs.builtin.export import export_stage

    export_stage(_workshop(options), output, note=note)


@main.command("check-companions")
@click.argument("names", nargs=-1, type=click.Choice(CHECKED))
@click.option("--count", default=CHECKED_SCENES, show_default=True, type=click.IntRange(min=2),
              help="Fresh scenes a companion.")  # fmt: skip
@click.option("--steps", default=25, show_default=True, type=click.IntRange(min=1))
@click.pass_obj
def check_companions(
    options: dict[str, Any], names: tuple[str, ...] = (), count: int = CHECKED_SCENES, steps: int = 25
) -> None:
    """Measure companions (all finished ones by default) with and without them.

    Writes companions.json and contact sheets to the work folder.
    """
    from jobs.builtin.companions.check import check_companions as check

    check(_workshop(options), names, count=count, steps=steps)


@main.command("export-companions")
@click.argument("names", nargs=-1, type=click.Choice(SHIPPED))
@click.option("--base", type=click.Path(path_type=Path), default=WEIGHTS, show_default="the package's own weights",
              help="The exported base; companions are written beside it.")  # fmt: skip
@click.option("--note", default="", help="A sentence for their cards, on what was unusual about the runs.")
@click.pass_obj
def export_companions(
    options: dict[str, Any], names: tuple[str, ...] = (), base: Path = WEIGHTS, note: str = ""
) -> None:
    """Write companions (all finished ones by default) beside the exported base, with their cards."""
    from jobs.builtin.companions.export import export_companions as export_them

    export_them(_workshop(options), base, names, note=note)


@main.command()
@click.option("--output", type=click.Path(path_type=Path), default=WEIGHTS, show_default="the package's own weights")
@click.option("--count", default=256, show_default=True, type=click.IntRange(min=2),
              help="Prompts a guidance scale in the evaluation; also the scenes of a check, up to 64.")  # fmt: skip
@click.pass_context
def train(context: click.Context, output: Path, count: int) -> None:
    """Run all stages, evaluate and export, then the same with the companions."""
    shop = _workshop(context.obj)
    from jobs.builtin.stages import TRAINING

    for stage in STAGES:
        TRAINING[stage](shop)
    context.invoke(export, output=output)
    context.invoke(evaluate, model=output, count=count)
    context.invoke(export, output=output)  # again, for the card to hold the scores
    from jobs.builtin.companions.stages import run_companion

    for name in COMPANIONS:
        run_companion(shop, name)
    context.invoke(check_companions, count=min(CHECKED_SCENES, count))
    context.invoke(export_companions, base=output)


@main.command()
@click.option("--model", type=click.Path(path_type=Path), default=WEIGHTS, show_default="the package's own weights")
@click.option("--count", default=256, show_default=True, type=click.IntRange(min=2), help="Prompts a guidance scale.")
@click.option("--guidance", multiple=True, type=float, default=GUIDANCES, show_default=True)
@click.option("--steps", default=25, show_default=True)
@click.pass_obj
def evaluate(
    options: dict[str, Any],
    model: Path,
    count: int,
    guidance: tuple[float, ...] = GUIDANCES,
    steps: int = 25,
) -> None:
    """Score a model on fresh prompts; writes scores.json and contact sheets to the work folder."""
    from jobs.builtin.evaluate import evaluate as evaluate_model

    evaluate_model(_workshop(options), model, count=count, guidances=guidance, steps=steps, output=options["work"])


if __name__ == "__main__":
    sys.exit(main(prog_name="python -m jobs.builtin"))

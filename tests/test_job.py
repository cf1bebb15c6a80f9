"""Jobs: every mistake in a file is named at once, paths start from the file's folder, and our jobs load."""

from pathlib import Path

import pytest

from batchgen.errors import InputError
from batchgen.job import Job, Limits, WorkerResources, load_job
from batchgen.options import Device, Dtype, ImageFormat, Layout

JOBS = sorted(Path(__file__).parents[1].joinpath("jobs").glob("*.toml"))


def load(folder: Path, text: str) -> Job:
    (folder / "job.toml").write_text(text, encoding="utf-8")
    return load_job(str(folder / "job.toml"))


def complaints(folder: Path, text: str) -> list[str]:
    with pytest.raises(InputError) as error:
        load(folder, text)
    return str(error.value).splitlines()


def test_manifest_alone_is_a_job_with_defaults() -> None:
    """DESIGN: a manifest alone is a job with every setting at its default."""
    job = load_job("prompts.parquet")
    assert job == Job(manifest="prompts.parquet")
    assert (job.model, job.layout, job.format, job.dtype, job.device) == (
        "builtin", Layout.FILES, ImageFormat.PNG, Dtype.AUTO, Device.AUTO,
    )  # fmt: skip


def test_every_key_is_read(tmp_path: Path) -> None:
    """Each key of a job file arrives in its type, integers where a float is wanted included."""
    job = load(
        tmp_path,
        """
        manifest = "/data/m.parquet"
        output = "s3://bucket/x"
        model = "owner/name@main"
        layout = "parquet"
        format = "webp"
        shard_rows = 32
        batch_size = 4
        dtype = "bfloat16"
        device = "cpu"
        workers = 3
        address = "ray://head:10001"
        [defaults]
        steps = 12
        guidance_scale = 5
        scheduler = "DPM++ 2M Karras"
        [limits]
        max_images = 10
        max_hours = 2
        [worker]
        num_cpus = 2
        num_gpus = 0.5
        memory_gib = 12
        [storage_options]
        anon = true
        """,
    )
    assert job == Job(
        manifest="/data/m.parquet",
        output="s3://bucket/x",
        model="owner/name@main",
        layout=Layout.PARQUET,
        format=ImageFormat.WEBP,
        shard_rows=32,
        batch_size=4,
        dtype=Dtype.BFLOAT16,
        device=Device.CPU,
        workers=3,
        address="ray://head:10001",
        defaults={"num_inference_steps": 12, "guidance_scale": 5.0, "scheduler": "DPM++ 2M Karras"},
        limits=Limits(max_images=10, max_hours=2.0),
        worker=WorkerResources(num_cpus=2.0, num_gpus=0.5, memory_gib=12.0),
        storage_options={"anon": True},
    )


def test_paths_start_from_the_jobs_folder(tmp_path: Path) -> None:
    """A job file can be run from anywhere; a model that is no path there stays a name, URIs stay as they are."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    (folder / "model").mkdir()
    job = load(folder, 'manifest = "../m/a.csv"\noutput = "out"\nmodel = "model"')
    assert (job.manifest, job.output, job.model) == (
        str(tmp_path / "m/a.csv"), str(folder / "out"), str(folder / "model"),
    )  # fmt: skip
    job = load(folder, 'manifest = "s3://b/a.csv"\noutput = "/abs"\nmodel = "builtin"')
    assert (job.manifest, job.output, job.model) == ("s3://b/a.csv", "/abs", "builtin")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("shard_row = 3", "did you mean 'shard_rows'?"),
        ("frobnicate = 3", "known are manifest, output"),
        ("workers = -1", "0 or more"),
        ("workers = true", "wants a whole number"),
        ("workers = 1.5", "wants a whole number"),
        ("workers = '2'", "wants a whole number"),
        ("output = 3", "wants text"),
        ("layout = 'tar'", "files, parquet"),
        ("format = 'gif'", "png, webp, jpeg"),
        ("defaults = 3", "wants a table"),
        ("limits = 3", "wants a table, [limits]"),
        ("[limits]\nmax_image = 3", "did you mean 'limits.max_images'?"),
        ("[limits]\nmax_hours = -1", "more than 0"),
        ("[worker]\nnum_cpu = 1", "did you mean 'worker.num_cpus'?"),
        ("[worker]\nnum_gpus = -1", "num_gpus"),
        ("[defaults]\nnum_inference_step = 3", "did you mean 'num_inference_steps'?"),
        ("[defaults]\nstesp = 3", "did you mean 'num_inference_steps'?"),
        ("[defaults]\nnoise_seed = 3", "did you mean 'seed'?"),
        ("[defaults]\nmeta = 3", "takes no 'meta'"),
        ("[defaults]\nsteps = '3'", "not a whole number; write it without quotes"),
        ("steps = 3", "'defaults.num_inference_steps'?"),
        ("max_hours = 3", "did you mean 'limits.max_hours'?"),
        ("[limits]\nworkers = 3", "did you mean 'workers'?"),
        ("[worker]\nmemory = 3", "did you mean 'worker.memory_gib' or 'memory'?"),
        ("[storage_option]\nanon = true", "did you mean 'storage_options'?"),
        ("[defaults]\nid = 'a'", "takes no 'id'"),
        ("[defaults]\nimage = 'a.png'", "takes no 'image'"),
        ("[defaults]\nsteps = 'many'", "steps"),
        ("[defaults]\nwidth = 65", "64 or 72"),
        ("[defaults]\nsteps = 3\nnum_inference_steps = 4", "and so does steps"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, line: str, said: str) -> None:
    """Unknown keys are errors with a suggestion, values of the wrong type say what is wanted."""
    (found,) = complaints(tmp_path, f'manifest = "m.csv"\n{line}\n')
    assert found.startswith(f"job {tmp_path / 'job.toml'}: ")
    assert said in found


def test_all_problems_at_once(tmp_path: Path) -> None:
    """STYLE 10: validate everything, then report everything."""
    text = "shard_row = 3\nlayout = 'tar'\n[limits]\nmax_image = 1\n[defaults]\nsteps = -4\nwidht = 64\n"
    found = complaints(tmp_path, text)
    assert len(found) == 6
    for part in ("shard_row", "layout", "max_image", "steps", "widht", "'manifest' is missing"):
        assert sum(part in line for line in found) >= 1, part


@pytest.mark.parametrize(("column", "value"), [("task", '"image-to-image"'), ("image", '"a.png"'), ("id", '"a"')])
def test_a_default_that_nothing_would_apply_is_refused(tmp_path: Path, column: str, value: str) -> None:
    """A default is applied or refused, never dropped in silence (STYLE 10)."""
    assert column in complaints(tmp_path, f'manifest = "m.csv"\n[defaults]\n{column} = {value}\n')[0]


@pytest.mark.parametrize("text", ["manifest = ", 'manifest = "a"\nmanifest = "b"', "\udcff"])
def test_not_toml(tmp_path: Path, text: str) -> None:
    """A file that does not parse is named, with the parser's place."""
    (tmp_path / "job.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"job\.toml: "):
        load_job(str(tmp_path / "job.toml"))


def test_no_such_file(tmp_path: Path) -> None:
    """A job that is not there is the user's error, not a traceback."""
    with pytest.raises(InputError, match="no such file"):
        load_job(str(tmp_path / "absent.toml"))


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_the_repositorys_jobs_load(path: Path) -> None:
    """STYLE 19: every job in the repository loads, and its manifest is there."""
    job = load_job(str(path))
    assert Path(job.manifest).exists()
    assert job.output


def test_there_are_jobs() -> None:
    """Issue 2, point 3: at least these two."""
    assert {"nightly.toml", "smoke.toml"} <= {path.name for path in JOBS}


def test_settings_are_laid_over_a_file(tmp_path: Path) -> None:
    """Keys of a job file as arguments: checked alike, seen from the current folder, None leaves the file's."""
    (tmp_path / "job.toml").write_text('manifest = "m.csv"\noutput = "out"\nworkers = 2\nlayout = "parquet"')
    job = load_job(
        str(tmp_path / "job.toml"), output="here", workers=None, format="webp", defaults={"steps": 9}, save_steps=(1, 2)
    )
    assert (job.manifest, job.output, job.workers) == (str(tmp_path / "m.csv"), "here", 2)
    assert (job.layout, job.format) == (Layout.PARQUET, ImageFormat.WEBP)
    assert (job.defaults, job.save_steps) == ({"num_inference_steps": 9}, (1, 2))


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(InputError) as error:
        load_job("m.csv", outptu="x", layout="tar", workers=-1, defaults={"num_inference_step": 3})
    assert str(error.value).splitlines() == [
        "job m.csv: unknown key 'outptu'; did you mean 'output'?",
        "job m.csv: key 'layout' is 'tar'; one of files, parquet",
        "job m.csv: key 'workers' is -1; wants 0 or more",
        "job m.csv: [defaults] takes no 'num_inference_step'; did you mean 'num_inference_steps'?",
    ]

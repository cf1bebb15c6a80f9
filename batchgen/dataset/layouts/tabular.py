"""What layouts have in common whose metadata lie as Parquet tables: the lines by which other readers open them."""

from typing import ClassVar

from batchgen.dataset.layouts.layout import DatasetLayout

__all__ = ["TabularLayout"]


class TabularLayout(DatasetLayout):
    """pandas, Polars and DuckDB read what lies at `glob`, and `datasets` the folder."""

    datasets_in_bucket: ClassVar[str]
    """Python by which `datasets` reads an output in a bucket, or why it cannot."""

    def python_in_folder(self, path: str | None) -> str:
        pandas = "" if path is None else f'\nimages = folder + "/" + frame["{path}"]'
        polars = "" if path is None else f'.with_columns(image=folder + "/" + polars.col("{path}"))'
        return f"""from datasets import load_dataset
dataset = load_dataset(folder, split="train")

from glob import glob
import pandas
frame = pandas.concat(map(pandas.read_parquet, glob(f"{{folder}}/{self.glob}"))){pandas}

import polars
table = polars.read_parquet(f"{{folder}}/{self.glob}"){polars}"""

    def python_in_bucket(self, path: str | None) -> str:
        image = "" if path is None else f", '{{folder}}/' || {path} AS image"
        return f"""{self.datasets_in_bucket}

import pandas
tables = [store.unstrip_protocol(key) for key in store.glob(f"{{folder}}/{self.glob}")]
frame = pandas.concat(pandas.read_parquet(table, storage_options=options) for table in tables)

import polars
table = polars.read_parquet(f"{{folder}}/{self.glob}")

import duckdb
database = duckdb.connect()
database.register_filesystem(store)
rows = database.sql(f"SELECT prompt, seed{image} FROM '{{folder}}/{self.glob}'")"""

    def sql_in_folder(self, folder: str, path: str | None) -> str:
        image = "" if path is None else f", '{folder}/' || {path} AS image"
        return f"SELECT prompt, seed, guidance_scale{image} FROM '{folder}/{self.glob}';"

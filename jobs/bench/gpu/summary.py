"""The short table that is printed last, from the journal's records."""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["results_file", "table"]

Record = Mapping[str, Any]


def results_file(records: Sequence[Record]) -> str:
    """DATE-GPU.json."""
    about: Mapping[str, Any] = next((record["about"] for record in records if "about" in record), {})
    gpu = re.sub(r"[^A-Za-z0-9]+", "-", about.get("gpu", "cpu")).strip("-")
    return f"{time.strftime('%Y-%m-%d', time.gmtime())}-{gpu}.json"


def table(records: Sequence[Record]) -> str:
    """A line for each finding, in Markdown, phase by phase; what failed comes last, with the end of its traceback."""
    lines = ["| phase | what | found |", "|---|---|---|"]
    for record in records:
        for what, found in _rows(record):
            lines.append(f"| {record['phase']} | {what} | {found} |")
    return "\n".join(lines + list(_failures(records)))


def _rows(record: Record) -> Iterator[tuple[str, str]]:
    phase = record["phase"].split(":")[0]
    match record:
        case {"about": about}:
            yield "machine", f"{about.get('gpu', about['cpu'])}, torch {about['torch']}, diffusers {about['diffusers']}"
        case {"matmul_tflops": rate}:
            yield "bfloat16 matrix product", f"{rate} TFLOP/s"
        case {"copy_tb_per_s": rate}:
            yield "copy on the device", f"{rate} TB/s, read and written"
        case {"task": task, "same": same, "broken": broken}:
            by = "; ".join(f"{one['trial']}: {one['first_difference']}" for one in broken)
            yield f"{task}, batch {record['batch']}", "same bit for bit" if same else f"DIFFERS: {by}"
        case {"sums": _, "same": same}:
            yield "another process", "same bit for bit" if same else "DIFFERS"
        case {"images_per_s": rate, "split": split}:
            parts = ", ".join(f"{name} {value / record['seconds']:.0%}" for name, value in split.items())
            share = f", {record['of_ceiling']:.0%} of the ceiling" if record["of_ceiling"] else ""
            yield (
                f"{record['steps']} steps, batch {record['batch']}",
                (f"{rate} images/s{share}; {parts}; peak {record['peak_gib']} GiB"),
            )
        case {"psnr_db": psnr, "weights": weights, "dtype": dtype}:
            finite = "" if record["finite"] else ", NOT FINITE"
            yield f"{weights} weights, {dtype}", f"{'same' if psnr is None else f'{psnr} dB'}{finite}"
        case {"variant": variant, "images_per_s": rate}:
            psnr = record["psnr_db"]
            alone = "" if record.get("rows_alone", True) else ", ROWS DEPEND ON THEIR MATES"
            first = f", first call {record['seconds_first_call']} s" if "seconds_first_call" in record else ""
            again = "" if record["repeats"] else ", not the same twice"
            yield (
                f"{variant}, batch {record['batch']}",
                (f"{rate} images/s, {'same' if psnr is None else f'{psnr} dB'}{first}{alone}{again}"),
            )
        case {"variant": variant, "status": status} if "limit" not in record:
            yield variant, status
        case {"engine_images_per_s": engine, "worker_images_per_s": rate}:
            busy = record["gpu_busy_percent"]
            yield (
                f"worker, batch {record['batch']}",
                (f"{rate} images/s, {record['of_engine']:.0%} of the engine's {engine}; GPU busy {busy} %"),
            )
        case {"largest_batch": batch, "side": side}:
            yield f"{record['net']} at {side}", f"largest batch {batch}"
        case {"as_expected": good}:
            told = {key: value for key, value in record.items() if key not in ("phase", "as_expected", "message")}
            yield "as expected" if good else "NOT AS EXPECTED", ", ".join(f"{k} {v}" for k, v in told.items())
        case {"encoder": name}:
            ratio = record["seconds_single"] / record["seconds_batch"]
            yield f"{name}, 16 prompts in a call", f"{ratio:.1f} times as fast, error {record['error']:.2g}"
        case {"a_call": size, "images_per_s": rate}:
            yield f"decoding {size} a call", f"{rate} images/s, error {record['error']:.2g}"
        case {"summary": summary} if phase == "pytest":
            yield "tests marked gpu", summary


def _failures(records: Sequence[Record]) -> Iterator[str]:
    for record in records:
        if record.get("status") in ("failed", "ran over", "no time left") and "variant" not in record:
            lines = (record.get("traceback") or "").strip().splitlines()
            if record["status"] == "ran over":  # the innermost call comes first
                lines = [line for line in lines if line.strip().startswith("File")][:1]
            yield f"{record['phase']}: {record['status']}" + "".join(f": {line.strip()}" for line in lines[-1:])

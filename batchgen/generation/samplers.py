"""Names of samplers: diffusers' class names and those of the A1111 web UI. Knows nothing of diffusers itself.

The mapping follows the scheduler overview of diffusers' documentation; a test holds `OPTIONS` against the installed
diffusers. Left out on purpose: IPNDM and the EDM schedulers, whose noise levels do not fit Stable Diffusion's
training schedule (their first sigma is 1 or 80 where the model expects 14.6).
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from batchgen.errors import UnknownSampler

__all__ = ["FORCED", "NAMES", "OPTIONS", "Sampler", "find_sampler", "option_problems"]

_COMMON = frozenset(
    {"beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "prediction_type", "trained_betas"}
)


def _options(names: str) -> frozenset[str]:
    return _COMMON | set(names.split())


OPTIONS: Mapping[str, frozenset[str]] = {
    "DDIMParallelScheduler": _options(
        "clip_sample clip_sample_range dynamic_thresholding_ratio rescale_betas_zero_snr sample_max_value "
        "set_alpha_to_one steps_offset thresholding timestep_spacing"
    ),
    "DDIMScheduler": _options(
        "clip_sample clip_sample_range dynamic_thresholding_ratio rescale_betas_zero_snr sample_max_value "
        "set_alpha_to_one steps_offset thresholding timestep_spacing"
    ),
    "DDPMParallelScheduler": _options(
        "clip_sample clip_sample_range dynamic_thresholding_ratio rescale_betas_zero_snr sample_max_value "
        "steps_offset thresholding timestep_spacing variance_type"
    ),
    "DDPMScheduler": _options(
        "clip_sample clip_sample_range dynamic_thresholding_ratio rescale_betas_zero_snr sample_max_value "
        "steps_offset thresholding timestep_spacing variance_type"
    ),
    "DEISMultistepScheduler": _options(
        "algorithm_type dynamic_thresholding_ratio flow_shift lower_order_final sample_max_value solver_order "
        "solver_type steps_offset thresholding time_shift_type timestep_spacing use_beta_sigmas "
        "use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas"
    ),
    "DPMSolverMultistepScheduler": _options(
        "algorithm_type dynamic_thresholding_ratio euler_at_final final_sigmas_type flow_shift "
        "lambda_min_clipped lower_order_final rescale_betas_zero_snr sample_max_value solver_order "
        "solver_type steps_offset thresholding time_shift_type timestep_spacing use_beta_sigmas "
        "use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas use_lu_lambdas "
        "variance_type"
    ),
    "DPMSolverSDEScheduler": _options(
        "noise_sampler_seed steps_offset timestep_spacing use_beta_sigmas use_exponential_sigmas use_karras_sigmas"
    ),
    "DPMSolverSinglestepScheduler": _options(
        "algorithm_type dynamic_thresholding_ratio final_sigmas_type flow_shift lambda_min_clipped "
        "lower_order_final sample_max_value solver_order solver_type thresholding time_shift_type "
        "use_beta_sigmas use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas "
        "variance_type"
    ),
    "EulerAncestralDiscreteScheduler": _options("rescale_betas_zero_snr steps_offset timestep_spacing"),
    "EulerDiscreteScheduler": _options(
        "final_sigmas_type interpolation_type rescale_betas_zero_snr sigma_max sigma_min steps_offset "
        "timestep_spacing timestep_type use_beta_sigmas use_exponential_sigmas use_karras_sigmas"
    ),
    "HeunDiscreteScheduler": _options(
        "clip_sample clip_sample_range steps_offset timestep_spacing use_beta_sigmas use_exponential_sigmas "
        "use_karras_sigmas"
    ),
    "KDPM2AncestralDiscreteScheduler": _options(
        "steps_offset timestep_spacing use_beta_sigmas use_exponential_sigmas use_karras_sigmas"
    ),
    "KDPM2DiscreteScheduler": _options(
        "steps_offset timestep_spacing use_beta_sigmas use_exponential_sigmas use_karras_sigmas"
    ),
    "LCMScheduler": _options(
        "clip_sample clip_sample_range dynamic_thresholding_ratio original_inference_steps "
        "rescale_betas_zero_snr sample_max_value set_alpha_to_one steps_offset thresholding timestep_scaling "
        "timestep_spacing"
    ),
    "LMSDiscreteScheduler": _options(
        "steps_offset timestep_spacing use_beta_sigmas use_exponential_sigmas use_karras_sigmas"
    ),
    "PNDMScheduler": _options("set_alpha_to_one skip_prk_steps steps_offset timestep_spacing"),
    "SASolverScheduler": _options(
        "algorithm_type corrector_order dynamic_thresholding_ratio flow_shift lambda_min_clipped "
        "lower_order_final predictor_order sample_max_value steps_offset tau_func thresholding "
        "timestep_spacing use_beta_sigmas use_exponential_sigmas use_flow_sigmas use_karras_sigmas "
        "variance_type"
    ),
    "TCDScheduler": _options(
        "clip_sample clip_sample_range dynamic_thresholding_ratio original_inference_steps "
        "rescale_betas_zero_snr sample_max_value set_alpha_to_one steps_offset thresholding timestep_scaling "
        "timestep_spacing"
    ),
    "UniPCMultistepScheduler": _options(
        "disable_corrector dynamic_thresholding_ratio final_sigmas_type flow_shift lower_order_final "
        "predict_x0 rescale_betas_zero_snr sample_max_value shift_terminal sigma_max sigma_min solver_order "
        "solver_p solver_type steps_offset thresholding time_shift_type timestep_spacing use_beta_sigmas "
        "use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas"
    ),
}
"""Scheduler classes and the options their constructors take (diffusers drops unknown ones without a word)."""

FORCED: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPipeline": {"clip_sample": False, "steps_offset": 1},
    "StableDiffusionImg2ImgPipeline": {"clip_sample": False, "steps_offset": 1},
    "StableDiffusionInpaintPipeline": {"skip_prk_steps": True, "steps_offset": 1},
}
"""What pipelines of diffusers set in the config of any scheduler that they are given, whatever it says."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampler:
    """A scheduler class of diffusers and the options it is built with, over the model's own scheduler config."""

    class_name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


_SDE = {"algorithm_type": "sde-dpmsolver++"}
_A1111 = {
    "Euler": Sampler(class_name="EulerDiscreteScheduler"),
    "Euler a": Sampler(class_name="EulerAncestralDiscreteScheduler"),
    "LMS": Sampler(class_name="LMSDiscreteScheduler"),
    "Heun": Sampler(class_name="HeunDiscreteScheduler"),
    "DPM2": Sampler(class_name="KDPM2DiscreteScheduler"),
    "DPM2 a": Sampler(class_name="KDPM2AncestralDiscreteScheduler"),
    "DPM++ 2M": Sampler(class_name="DPMSolverMultistepScheduler"),
    "DPM++ 2M SDE": Sampler(class_name="DPMSolverMultistepScheduler", kwargs=_SDE),
    "DPM++ 3M SDE": Sampler(class_name="DPMSolverMultistepScheduler", kwargs=_SDE | {"solver_order": 3}),
    "DPM++ 2S a": Sampler(class_name="DPMSolverSinglestepScheduler"),  # the nearest that diffusers has
    "DPM++ SDE": Sampler(class_name="DPMSolverSDEScheduler"),
    "DDIM": Sampler(class_name="DDIMScheduler"),
    "DDPM": Sampler(class_name="DDPMScheduler"),
    "PLMS": Sampler(class_name="PNDMScheduler", kwargs={"skip_prk_steps": True}),
    "UniPC": Sampler(class_name="UniPCMultistepScheduler"),
    "DEIS": Sampler(class_name="DEISMultistepScheduler"),
    "LCM": Sampler(class_name="LCMScheduler"),
    "TCD": Sampler(class_name="TCDScheduler"),
    "SA-Solver": Sampler(class_name="SASolverScheduler"),
}
_SUFFIXES: Mapping[str, Mapping[str, Any]] = {
    "Karras": {"use_karras_sigmas": True},
    "Exponential": {"use_exponential_sigmas": True},
    "Beta": {"use_beta_sigmas": True},
    "SGM Uniform": {"timestep_spacing": "trailing"},
}


def _named() -> dict[str, Sampler]:
    names = dict(_A1111)
    for name, sampler in _A1111.items():
        for suffix, options in _SUFFIXES.items():
            if options.keys() <= OPTIONS[sampler.class_name]:
                names[f"{name} {suffix}"] = Sampler(class_name=sampler.class_name, kwargs={**sampler.kwargs, **options})
    return names


NAMES: Mapping[str, Sampler] = {**{name: Sampler(class_name=name) for name in OPTIONS}, **_named()}


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name.strip().lower())


_FOREIGN: Mapping[str, str] = {
    # ComfyUI and k-diffusion
    "euler_ancestral": "Euler a",
    "dpm_2": "DPM2",
    "dpm_2_ancestral": "DPM2 a",
    "dpmpp_2s_ancestral": "DPM++ 2S a",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_gpu": "DPM++ 2M SDE",
    "dpmpp_3m_sde": "DPM++ 3M SDE",
    "dpmpp_3m_sde_gpu": "DPM++ 3M SDE",
    "dpmpp_sde": "DPM++ SDE",
    "dpmpp_sde_gpu": "DPM++ SDE",
    "uni_pc": "UniPC",
    "sa_solver": "SA-Solver",
    # InvokeAI
    "dpmpp_2s": "DPM++ 2S a",
    "kdpm_2": "DPM2",
    "kdpm_2_a": "DPM2 a",
    "pndm": "PLMS",
    # DiffusionDB's numbers
    "1": "DDIM",
    "2": "PLMS",
    "3": "Euler",
    "4": "Euler a",
    "5": "Heun",
    "6": "DPM2",
    "7": "DPM2 a",
    "8": "LMS",
}

_FOLDED = {_folded(name): sampler for name, sampler in NAMES.items()} | {
    _folded(prefix + foreign + suffix): NAMES[name + own]
    for foreign, name in _FOREIGN.items()
    for prefix in ("", "k_")
    for suffix, own in {"": "", "_k": " Karras", **{f" {one}": f" {one}" for one in _SUFFIXES}}.items()
    if name + own in NAMES and not (foreign.isdigit() and (prefix or suffix))
}


def find_sampler(name: str) -> Sampler:
    """The sampler of that class name or A1111 name, or of ComfyUI's, InvokeAI's or DiffusionDB's for it.

    Letter case and `-_` against spaces do not matter.

    Raises:
        UnknownSampler: with the nearest known names.
    """
    sampler = _FOLDED.get(_folded(name))
    if sampler is None:
        near = get_close_matches(_folded(name), _FOLDED, n=3, cutoff=0.5)
        known = [n for n in NAMES if _folded(n) in near] or ["Euler a", "DPM++ 2M Karras", "DDIM"]
        raise UnknownSampler(f"unknown scheduler {name!r}; did you mean {' or '.join(map(repr, known))}?")
    return sampler


_CHOICES: Mapping[str, frozenset[str]] = {
    "prediction_type": frozenset({"epsilon", "sample", "v_prediction"}),
    "timestep_spacing": frozenset({"leading", "linspace", "trailing"}),
    "beta_schedule": frozenset({"linear", "scaled_linear", "squaredcos_cap_v2"}),
}
_SWITCHES = frozenset(
    "clip_sample euler_at_final lower_order_final predict_x0 rescale_betas_zero_snr set_alpha_to_one skip_prk_steps "
    "thresholding".split()
)  # any text is true for diffusers, "false" too
_SPACINGS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_flow_sigmas")


LONGEST_TEXT = 100  # characters of an option's value
MOST_TIMESTEPS = 10_000  # noise levels of a schedule: tables are as long


def option_problems(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the values of options, as far as their names tell; the classes themselves know more."""
    found = []
    for name, value in options.items():
        if not _is_option(value, listed=name == "trained_betas"):
            wanted = "a list of numbers" if name == "trained_betas" else "a number, text, true or false"
            found.append(f"{name} is {_shown(value)}; write {wanted}")
        elif name == "num_train_timesteps" and not (type(value) is int and 1 <= value <= MOST_TIMESTEPS):
            found.append(f"{name} is {value!r}; write a whole number from 1 to {MOST_TIMESTEPS}")
        elif name in _CHOICES and value not in _CHOICES[name]:
            found.append(f"{name} is {value!r}; one of {', '.join(sorted(_CHOICES[name]))}")
        elif (name.startswith("use_") or name in _SWITCHES) and not isinstance(value, bool):
            found.append(f"{name} is {value!r}; write true or false")
        elif name.endswith("_order") and type(value) is not int:
            found.append(f"{name} is {value!r}; write a whole number")
    chosen = [name for name in _SPACINGS if options.get(name)]
    if len(chosen) > 1:
        found.append(f"sets {' and '.join(chosen)}; choose one")
    return found


def _is_option(value: Any, *, listed: bool) -> bool:
    """Whether a value is of a kind that some scheduler takes."""
    if listed and isinstance(value, list):
        return 0 < len(value) <= MOST_TIMESTEPS and all(
            type(one) in (int, float) and _is_option(one, listed=False) for one in value
        )
    if isinstance(value, (int, float)):
        return abs(value) <= sys.float_info.max and (isinstance(value, float) or abs(value) < 2**63)
    return isinstance(value, str) and len(value) <= LONGEST_TEXT


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

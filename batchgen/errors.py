"""What can go wrong, sorted by who can do something about it. Knows nothing of any library.

BatchgenError
├── InputError                 the user's manifest, job, model or flags; permanent                 exit 2
│   └── ManifestProblems       all that is wrong with a manifest's rows
├── CellError                  a cell does not fit its column; becomes a problem of its row
│   └── WrongType              it has another type
├── ImageError                 a conditioning image cannot be used; the same
├── PromptSyntaxError          a tag such as <lora:...> in a prompt cannot be read; the same
├── TextError                  a file of a manifest is no text; a problem of the file
├── UnknownSampler             no sampler of that name; the same
├── RunDied                    a run that was watched was killed, or its machine lost                exit 5
├── Interrupted                a signal or a limit ended the run; the same command resumes it      exit 3
└── InfrastructureError        something around the job failed; transient, so retrying may help    exit 4
    ├── StoreError
    │   ├── AlreadyExists      a create-only write met an object of that name
    │   ├── Damaged            an object holds other bytes than batchgen writes
    │   │   └── LaterVersion   or those of a later batchgen
    │   ├── NotFound
    │   ├── OutputGone         the output that was opened is no longer at its place
    │   ├── StoreRefused       full, read-only, or with keys that may not: somebody has to do something
    │   └── WebError           a server of the web is busy, broken or away
    ├── OutputBusy             another live run holds the output's lease                         exit 6
    │   └── LeaseLost          another run has taken it from this one
    ├── ModelLoadError
    ├── OutOfDeviceMemory      a call of so many images does not fit on the device
    ├── CanaryDied             a worker makes other images than it made before
    ├── Stopped                a worker whose run was stopped gives up what it has in work
    ├── DeviceLost             the device cannot be used any more by this process
    └── ClusterError

`ErrorClass` is what becomes of them in the failure ledger. No text of theirs holds a terminal code or a secret,
whoever's words and cells it repeats: `printable` is what they pass through, and what all passes through that is said on
a terminal; what is kept and not said passes through `without_secrets` alone.
"""

import re
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from batchgen.index import Counts
    from batchgen.manifest.problems import ProblemLog

__all__ = [
    "AlreadyExists",
    "BatchgenError",
    "CanaryDied",
    "CellError",
    "ClusterError",
    "Damaged",
    "DeviceLost",
    "ErrorClass",
    "ImageError",
    "InfrastructureError",
    "InputError",
    "Interrupted",
    "LaterVersion",
    "LeaseLost",
    "ManifestProblems",
    "ModelLoadError",
    "NotFound",
    "OutOfDeviceMemory",
    "OutputBusy",
    "OutputGone",
    "PromptSyntaxError",
    "RunDied",
    "Stopped",
    "StoreError",
    "StoreRefused",
    "TextError",
    "UnknownSampler",
    "WebError",
    "WrongType",
    "one_line",
    "printable",
    "without_secrets",
]

LONGEST_LINE = 300  # characters of an error in another library's words; some of them run over many lines
_TERMINAL_CODES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colors, cursor
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # titles, links
)
# those of terminals, those that turn the direction of text, and halves of characters, which cannot be written
_CONTROLS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_URI = re.compile(r"(?<![A-Za-z0-9+.-])([A-Za-z][A-Za-z0-9+.-]*+://)([^\s\"'<>\\`]++)")
_USER = re.compile(r"^[^/?#]*@")
_NAMED_SECRET = re.compile(  # as query strings, commands and configs have them
    r"(?i)(?<![a-z0-9_-])("
    r"(?:x-amz-|x-goog-)(?:signature|credential|security-token)|aws_?access_?key_?id|aws_?session_?token|signature|sig"
    r"|(?:aws_?)?secret(?:_?access)?(?:_?key)?|access_?key(?:_?id)?|api_?key|(?:access_?|auth_?|id_?)token"
    r"|passw(?:or)?d|credentials?|token(?==)"  # that of an embedding is a word of prompts
    r")(=[\"']?|[\"']\s*[:=]\s*[\"'])[^\s&\"',;)\]}]++"
)
_BARE_SECRET = re.compile(r"\b(AKIA|ASIA|hf_|gh[opsu]_|(?i:bearer )\s*)[A-Za-z0-9._~+/=-]{12,}")


def without_secrets(text: str) -> str:
    """The text without user and password of URIs, query strings of the web's, and what looks like a key by its name."""
    if "://" in text:
        text = _URI.sub(_public_uri, text)
    if "=" in text or ":" in text:
        text = _NAMED_SECRET.sub(r"\1\2***", text)
    return _BARE_SECRET.sub(r"\1***", text)


def _public_uri(found: re.Match[str]) -> str:
    protocol, rest = found[1], _USER.sub("", found[2])
    return protocol + (re.split(r"[?#]", rest, maxsplit=1)[0] if protocol.lower().startswith("http") else rest)


def printable(text: str) -> str:
    """The text without secrets, its control characters spelt out (`\\x1b`); line ends and tabs stay."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], without_secrets(text))


def one_line(error: BaseException) -> str:
    """What went wrong, without a library's colors, in a line of at most 300 characters."""
    text = printable(_TERMINAL_CODES.sub("", " ".join(str(error).split()))) or type(error).__name__
    return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 3] + "..."


class ErrorClass(StrEnum):
    """Why a row failed, in the failure ledger and for `retry --class`. A closed set.

    Outputs of earlier versions may hold others: names of Python's exceptions.
    """

    CONDITIONING = "conditioning"  # a conditioning image cannot be read, or changed since the check
    INPUT = "input"  # what the row asks for cannot be done: an adapter, a scheduler's option
    GENERATION = "generation"  # the pipeline raised something that nobody foresaw
    NAN = "nan"  # the image holds NaN or infinity
    BLANK = "blank"  # every pixel has one value
    SAFETY = "safety"  # the model's safety checker objects, and the job says drop
    MEMORY = "out-of-memory"  # the micro-batch does not fit on the device
    WORKER = "worker-died"  # its worker's process died each time
    MODEL = "model"  # the model cannot be loaded
    STORE = "store"  # the output cannot be written


class BatchgenError(Exception):
    """Base of every error that batchgen raises on purpose; its text is one line that says what to try."""

    exit_code: ClassVar[int] = 1

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(BatchgenError):
    """The user's input cannot be used as it is; nothing was started."""

    exit_code = 2


class ManifestProblems(InputError):
    """A manifest with rows that cannot be made as they are; all of them are in `log`."""

    def __init__(self, log: "ProblemLog") -> None:
        super().__init__("\n".join(log.lines()))
        self.log = log


class CellError(BatchgenError, ValueError):
    """A cell does not fit its column; the text says what is wrong and what to try, without naming the place."""


class WrongType(CellError):
    """A cell has another type than its column."""


class ImageError(BatchgenError, ValueError):
    """A conditioning image that cannot be used; the text says why."""


class PromptSyntaxError(BatchgenError, ValueError):
    """A tag in a prompt that cannot be read; the text says what is wrong."""


class TextError(BatchgenError, ValueError):
    """A file that is no text; the message says what it is and what to try, without its name."""


class UnknownSampler(BatchgenError, LookupError):
    """No sampler of that name; the text suggests one."""


class Interrupted(BatchgenError):
    """The run stopped before all rows were made; running the same command again goes on."""

    exit_code = 3

    def __init__(self, message: str, counts: "Counts | None" = None) -> None:
        super().__init__(message)
        self.counts = counts  # where the rows stand


class RunDied(BatchgenError):
    """A run that was watched ended without a word; running its command again goes on."""

    exit_code = 5


class InfrastructureError(BatchgenError):
    """Something around the job failed, not the job itself."""

    exit_code = 4


class StoreError(InfrastructureError):
    """A file system or object store refused, failed, or could not be reached."""


class AlreadyExists(StoreError):
    """A create-only write found an object of that name; the stored bytes are untouched."""


class Damaged(StoreError):
    """An object of the output holds other bytes than batchgen writes; reading it again does not help."""


class LaterVersion(Damaged):
    """An object is of a later version of batchgen: nothing is wrong with it, and this version leaves it alone."""


class NotFound(StoreError):
    """There is no object of that name."""


class OutputGone(StoreError):
    """The output was moved, removed, unmounted or replaced while it was in use; nothing is written in its place."""


class StoreRefused(StoreError):
    """A store that is full, read-only, or refuses these keys: somebody has to do something before it is tried again."""


class WebError(StoreError):
    """A server of the web is busy, broken or away: the matter of what names it, while others answer."""


class OutputBusy(InfrastructureError):
    """Another live run is writing to the same output."""

    exit_code = 6


class LeaseLost(OutputBusy):
    """Another run took this one for dead and writes to the output now."""


class ModelLoadError(InfrastructureError):
    """A model that looked right from outside could not be loaded."""


class OutOfDeviceMemory(InfrastructureError):
    """A call does not fit into the device's memory; the text says what to try."""


class CanaryDied(InfrastructureError):
    """A worker made other images for the same call than before: something of other rows stayed in its model."""


class Stopped(InfrastructureError):
    """The run that a worker works for was stopped; nothing comes of what is in work."""


class DeviceLost(InfrastructureError):
    """The device's state is lost for this process, which must end; another one can use the device."""


class ClusterError(InfrastructureError):
    """Ray could not be started or reached, or its workers keep dying."""

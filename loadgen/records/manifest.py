"""manifest.json: what was run, where, and how to run it again. Secrets are not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec

from loadgen.environment import Host
from loadgen.errors import RunFolderError
from loadgen.gpus import Gpu
from loadgen.loads import Load
from loadgen.records.files import FORMAT_VERSION, UNREADABLE, write_json

FindKind = Literal["capacity", "knee"]
Over = Literal["concurrency", "rate"]


class FileDataset(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="file"):
    """Prompts from a file; ``prompts`` counts them."""

    path: str
    sha256: str
    prompts: int

    @property
    def source(self) -> str:
        """What the prompts were made from, equal for equal prompts."""
        return f"{Path(self.path).name}, sha256 {self.sha256[:12]}"

    @property
    def text(self) -> str:
        """As a heading has it."""
        return f"{self.prompts} prompts of {self.path}"


class SyntheticDataset(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="synthetic token ids"):
    """Prompts that were made up as token ids; lengths as ``--input-tokens`` and ``--output-tokens`` take them."""

    input_tokens: str
    output_tokens: str
    vocab_size: int

    @property
    def source(self) -> str:
        """What the prompts were made from, equal for equal prompts."""
        return ", ".join(f"{name} {value}" for name, value in sorted(msgspec.to_builtins(self).items()))

    @property
    def text(self) -> str:
        """As a heading has it."""
        return f"synthetic prompts, {self.input_tokens} tokens in, {self.output_tokens} out"


class UnknownDataset(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", tag="unknown"):
    """Another tool's result does not say what was sent."""

    @property
    def source(self) -> str:
        """Equal for all results that do not say."""
        return "prompts not in the file"

    @property
    def text(self) -> str:
        """As a heading has it."""
        return "prompts not in the file"


Dataset: TypeAlias = FileDataset | SyntheticDataset | UnknownDataset


class EngineEntry(msgspec.Struct, kw_only=True):
    """The engine that was measured.

    Attributes:
        kind: a key of the table of engines, or ``openai`` for a server that is none of them.
        version: as the server says it.
        argv, env, shell: how it was started; None where it ran already.
        url, model: where requests went, and for which model.
        dialect, endpoint: which optional fields requests had; ``completions`` or ``chat``.
        startup_s: duration of each phase of its start.
        gpu_uuids: of the GPUs that it ran on.
        facts: what the engine's own module adds, by names of its own: package, versions, the model's shape. In JSON
            they stand beside the other fields.
    """

    kind: str = "an engine"
    version: str | None = None
    argv: list[str] | None = None
    env: dict[str, str | None] = {}
    shell: str | None = None
    url: str | None = None
    model: str | None = None
    dialect: str | None = None
    endpoint: str | None = None
    startup_s: dict[str, float] | None = None
    gpu_uuids: list[str] = []
    facts: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Kind and version."""
        return f"{self.kind} {self.version or ''}".strip()

    @property
    def dummy_weights(self) -> bool | None:
        """Whether the weights were made up; None where that is not known."""
        found = self.facts.get("dummy_weights")
        return found if isinstance(found, bool) else None

    @property
    def arguments(self) -> list[str]:
        """Of the command, without the port, which is another at every launch."""
        port = (self.url or "").rstrip("/").rpartition(":")[2]
        return [word for word in self.argv or [] if word not in ("--port", port)]


class Goal(msgspec.Struct, kw_only=True, frozen=True):
    """What a search looks for; the manifest's ``load.find``.

    Attributes:
        over: what is raised.
        start: the first load: requests in flight or requests/s.
        highest: load beyond which nothing is tried.
        slo, attainment: of a capacity: as ``--slo`` takes it, and the share of requests that must meet it.
        duration_s, max_duration_s: of a probe, and of one that is measured for longer.
        max_find_s: of the whole search; the one bound that is not decided by the search itself.
    """

    kind: FindKind
    over: Over
    start: float
    highest: float
    slo: str = ""
    attainment: float = 0.99
    duration_s: float
    max_duration_s: float
    max_find_s: float


class LoadEntry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What was asked of every level.

    Attributes:
        model: ``closed``, ``open``, or ``search`` where the levels follow from each other.
        arrival: of an open loop, as ``--arrival`` takes it.
        find: what was searched for.
        requests, duration_s: how much was measured at each level.
        precision, max_duration_s: each level went on until its figures were known so well (relative half width of
            their 95 % intervals), or for so long.
        rounds: how often all levels were gone through; None where another tool does not say.
        slo: as ``--slo`` takes it.
        attainment: the share of requests that must meet the objectives, where another than the usual was asked for.
        warmup: whether requests were sent before the measured ones.
        timeouts: limits in seconds, by name.
    """

    model: str | None
    arrival: str | None = None
    find: Goal | None = None
    requests: int | None
    duration_s: float | None
    precision: float | None = None
    max_duration_s: float | None = None
    rounds: int | None
    slo: str | None = None
    attainment: float | None = None
    warmup: bool | None
    timeouts: dict[str, float] | None

    @property
    def amount(self) -> str:
        """How much was measured at each level, in words."""
        return f"{self.requests} requests" if self.requests else f"{self.duration_s} s"


class CalibrationEntry(msgspec.Struct, kw_only=True):
    """What the last calibration of this machine found; rates are None where no load stayed within the bound."""

    workers: int
    tokens_per_s_within_1ms: float | None
    tokens_per_s_within_5_percent: float | None


class ClientEntry(msgspec.Struct, kw_only=True):
    """The side that measured; ``headers`` are the names of extra headers, never their values."""

    loadgen_version: str | None = None
    workers: int | None = None
    headers: list[str] = []
    calibration: CalibrationEntry | None = None


class Manifest(msgspec.Struct, kw_only=True):
    """The content of manifest.json."""

    format_version: int = FORMAT_VERSION
    command: list[str]
    started_utc: str
    simulated: bool
    host: Host
    gpus: list[Gpu] = []
    driver: str | None = None
    engine: EngineEntry
    dataset: Dataset
    seed: int
    load: LoadEntry
    levels: list[Load]
    client: ClientEntry


_ENGINE_FIELDS = set(EngineEntry.__struct_fields__) - {"facts"}


def write_manifest(run: Path, manifest: Manifest) -> None:
    """Writes manifest.json of a run folder, the engine's facts beside its other fields."""
    fields = msgspec.to_builtins(manifest)
    facts = fields["engine"].pop("facts")
    fields["engine"] |= facts
    write_json(run / "manifest.json", fields)


def manifest_of(fields: dict[str, Any]) -> Manifest:
    """The manifest that decoded JSON says.

    Raises:
        msgspec.ValidationError: it is none.
    """
    engine = fields.get("engine")
    if isinstance(engine, dict):
        known = {name: value for name, value in engine.items() if name in _ENGINE_FIELDS}
        facts = {name: value for name, value in engine.items() if name not in _ENGINE_FIELDS}
        fields = {**fields, "engine": {**known, "facts": facts}}
    return msgspec.convert(fields, Manifest)


def read_manifest(run: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        RunFolderError: no such folder, no manifest in it, or one of a later format.
    """
    path = run / "manifest.json"
    if not run.is_dir():
        what = f"is a file; name the folder of the run, such as {run.parent}" if run.exists() else "no such run folder"
        raise RunFolderError(f"{run}: {what}")
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}; is {run} a run folder of loadgen?") from None
    try:
        fields = msgspec.json.decode(raw, type=dict[str, Any])
        version = fields.get("format_version")
        if not isinstance(version, int):
            raise RunFolderError(f"{path}: no format_version; this is no run folder of loadgen")
        if version > FORMAT_VERSION:
            raise RunFolderError(
                f"{path}: format_version {version}, but this loadgen reads up to {FORMAT_VERSION}; upgrade loadgen"
            )
        return manifest_of(fields)
    except UNREADABLE as error:
        raise RunFolderError(f"{path}: {error}; is {run} a run folder of loadgen?") from None

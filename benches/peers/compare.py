"""Runs hawqc and its peers side by side and writes the ratios of their times.

    python compare.py --models DIR --hawqc target/release/hawqc [--networks resnet18,...] [--threads 1,2] [--out NAME]

DIR comes from make_models.py. Networks are compiled with the given hawqc anew. Each contender is a process of its own
(worker.py, or tract/ built with Cargo) on as many CPUs as threads; all but the one being timed are stopped. A round times every
contender once, in an order that turns from round to round. A contender's time is the median of its rounds'
medians; its ratio is the median over the rounds of its time divided by the reference's in the same round. The first
contender is the reference; a ratio above 1 says that the reference is faster. Processor time, the same ratio of
medians taken of it, is given beside: other programs that share the machine lengthen it less.

Every contender's logits are set against the float network's; the JSON file holds versions, machine, load, what each
contender says it executed, and the time of every round. `--startup N` instead starts N fresh processes of each
and reports memory, loading time and the time to the first result.
"""

import argparse
import ctypes
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import report
from make_models import NETWORKS

HERE = Path(__file__).resolve().parent
TRACT = HERE / "tract" / "target" / "release" / "tract-worker"
PEERS = {  # name: kind, file ("{threads}" where it is made for a number of threads)
    "onnxruntime u8s8": ("onnxruntime", "ort-u8s8.onnx"),
    "onnxruntime s8s8": ("onnxruntime", "ort-s8s8.onnx"),
    "onnxruntime f32": ("onnxruntime", "float.onnx"),
    "openvino nncf": ("openvino", "openvino-nncf.xml"),
    "openvino qdq": ("openvino", "openvino-qdq.xml"),
    "litert int8": ("litert", "litert.tflite"),
    "torch x86": ("torch", "torch-x86.pt"),
    "torch inductor": ("torch-inductor", "torch-inductor-{threads}.pt2"),
    "tract qoperator": ("tract", "ort-qoperator.onnx"),
    "tract qlinear u8s8": ("tract", "ort-qlinear-u8s8.onnx"),
    "tract qlinear s8s8": ("tract", "ort-qlinear-s8s8.onnx"),
    "tract f32": ("tract", "float.onnx"),
    "ncnn float": ("ncnn", "ncnn.param"),
}


@dataclass
class Contender:
    name: str
    kind: str
    model: Path
    runtime: Path | None = None


@dataclass
class Startup:
    """A worker's first line."""

    version: str
    load_ms: float
    first_ms: float
    baseline_kib: int  # resident with the image, before the runtime is there
    imported_kib: int  # resident with the runtime's library, before the model
    peak_kib: int
    logits: list[float] = field(repr=False)


def confine(threads: int) -> None:
    """In the new process: as many CPUs as threads, and an end with the parent, which a stopped process would outlive."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


class Worker:
    """A contender's process, stopped except while it is asked something."""

    def __init__(self, contender: Contender, folder: Path, size: int, threads: int):
        self.contender = contender
        image = folder / "image.f32"
        if contender.kind == "tract":
            command = [TRACT, contender.model, image, threads]
        else:
            command = [sys.executable, HERE / "worker.py", contender.kind, contender.model, image, size, threads]
            if contender.runtime:
                command += ["--runtime", contender.runtime]
        environment = os.environ | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")}
        self.errors = (folder / f"{contender.name.replace(' ', '-')}.log").open("w+")
        self.process = subprocess.Popen(
            [str(c) for c in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
            preexec_fn=lambda: confine(threads),
        )
        try:
            self.startup = Startup(**self.answer())
        except BaseException:
            self.end()
            raise
        self.process.send_signal(signal.SIGSTOP)

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            said = [s for s in self.errors.read().strip().splitlines() if s.strip()]
            raise RuntimeError(said[-1][:300] if said else f"ended with {self.process.wait()}")
        return json.loads(line)

    def ask(self, what: str | int):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.process.send_signal(signal.SIGSTOP)
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()


def machine() -> dict:
    info = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    cpu = dict((part.strip() for part in line.split(":", 1)) for line in info if ":" in line)
    wide = [f for f in cpu.get("flags", "").split() if f.startswith("avx") or f in ("fma", "f16c") or "amx" in f]
    return {
        "cpu": f"{cpu.get('model name')}, family {cpu.get('cpu family')} model {cpu.get('model')}",
        "features": wide,
        "cpus": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def compile_hawqc(label: str, binary: Path, folder: Path, bits: list[str], flags: list[str]) -> list[Contender]:
    places = [binary.parent / "libhawqc_runtime.so", binary.parent / "deps" / "libhawqc_runtime.so"]
    runtime = next((place for place in places if place.exists()), None)
    if runtime is None:
        raise SystemExit(f"no libhawqc_runtime.so beside {binary}; build it with cargo build --release -p hawqc-runtime")
    source, calibration = folder / "float.onnx", folder / f"{label}-calibration.json"
    subprocess.run([binary, "calibrate", source, "--data", folder / "calibration.npz", "-o", calibration, "-q"], check=True)
    contenders = []
    for b in bits:
        name = f"{label} {'w8a8' if b == '8' else 'w4a4' if b == '4' else Path(b.replace(':', '-')).stem}"
        model = folder / f"{name.replace(' ', '-')}.so"
        command = [binary, "compile", source, "--calib", calibration, "--bits", b, "-o", model, "-q", *flags]
        subprocess.run(command, check=True)
        contenders.append(Contender(name, "hawqc", model, runtime))
    return contenders


def contenders(args, folder: Path, threads: int) -> tuple[list[Contender], dict[str, str]]:
    """Who can take part, the reference first, and why the others cannot."""
    found, skipped = [], {}
    for binary in args.hawqc:
        label, _, path = binary.rpartition("=")
        found += compile_hawqc(label or "hawqc", Path(path), folder, args.bits.split(","), args.hawqc_flags.split())
    reasons = folder / "skipped.json"
    reasons = json.loads(reasons.read_text()) if reasons.exists() else {}
    for name, (kind, file) in PEERS.items():
        file = file.format(threads=threads)
        if args.contenders and not any(name.startswith(c) for c in args.contenders.split(",")):
            continue
        if not (folder / file).exists():
            skipped[name] = reasons.get(file, f"{file} was not made")
        elif kind == "tract" and not TRACT.exists():
            skipped[name] = "not built: cargo build --release in benches/peers/tract"
        else:
            found.append(Contender(name, kind, folder / file))
    return found, skipped


def start(found: list[Contender], skipped: dict[str, str], folder: Path, size: int, threads: int) -> list[Worker]:
    workers = []
    for contender in found:
        try:
            workers.append(Worker(contender, folder, size, threads))
        except RuntimeError as error:
            skipped[contender.name] = str(error)
    return workers


def float_logits(folder: Path, size: int) -> np.ndarray:
    worker = Worker(Contender("reference", "onnxruntime", folder / "float.onnx"), folder, size, 1)
    worker.end()
    return np.array(worker.startup.logits)


def answers(logits: list[float], reference: np.ndarray) -> dict:
    mine = np.array(logits)
    if mine.shape != reference.shape or not np.isfinite(mine).all():
        return {"top1_equal": False, "relative_error": None}
    error = np.linalg.norm(mine - reference) / np.linalg.norm(reference)
    return {"top1_equal": bool(mine.argmax() == reference.argmax()), "relative_error": round(float(error), 4)}


def bytes_of(contender: Contender) -> int:
    beside = contender.model.with_suffix(".bin")
    files = [contender.model] + ([beside] if contender.kind in ("openvino", "ncnn") else [])
    return sum(file.stat().st_size for file in files)


def described(worker: Worker, reference: np.ndarray) -> dict:
    startup = dataclasses.asdict(worker.startup)
    logits = startup.pop("logits")
    contender = worker.contender
    return {"kind": contender.kind, "bytes": bytes_of(contender)} | startup | answers(logits, reference)


def meeting_us(args, workers: list[Worker], threads: int) -> float:
    """How long so many threads take now to begin and end a step together: what says whether their cores share a cache."""
    binary = args.hawqc[0].rpartition("=")[2]
    model = next(worker.contender.model for worker in workers if worker.contender.kind == "hawqc")
    command = [binary, "bench", model, "--threads", str(threads), "--iters", "1", "--warmup", "0", "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["meeting_ns"] / 1e3


def times(args, workers: list[Worker], threads: int) -> tuple[dict[str, list[dict[str, list[int]]]], list[float]]:
    """Nanoseconds of every inference, `wall` and `cpu`: by contender, by round; and with several threads what
    `meeting_us` says before each round."""
    taken: dict[str, list[dict[str, list[int]]]] = {w.contender.name: [] for w in workers}
    meetings = []
    runs = {}
    for worker in workers:
        once = statistics.median(worker.ask(3)["wall"])
        runs[worker.contender.name] = max(3, round(args.seconds * 1e9 / once))
    for turn in range(args.rounds):
        if threads > 1:
            meetings.append(meeting_us(args, workers, threads))
        shift = turn % len(workers)
        for worker in workers[shift:] + workers[:shift]:
            taken[worker.contender.name].append(worker.ask(runs[worker.contender.name]))
    return taken, meetings


def summary(mine: list[dict[str, list[int]]], base: list[dict[str, list[int]]]) -> dict:
    def medians(rounds: list[dict[str, list[int]]], clock: str) -> list[float]:
        return [statistics.median(r[clock]) / 1e6 for r in rounds]

    def ratio(clock: str) -> float:
        return statistics.median(m / b for m, b in zip(medians(mine, clock), medians(base, clock), strict=True))

    rounds = medians(mine, "wall")
    low, high = np.percentile(rounds, [10, 90])
    return {
        "median_ms": statistics.median(rounds),
        "p10_ms": float(low),
        "p90_ms": float(high),
        "ratio": ratio("wall"),
        "cpu_ms": statistics.median(medians(mine, "cpu")),
        "cpu_ratio": ratio("cpu"),
        "rounds_ms": rounds,
        "inferences_a_round": len(mine[0]["wall"]),
    }


def timed(args, network: str, threads: int) -> dict:
    folder, size = args.models / network, NETWORKS[network]
    reference = float_logits(folder, size)
    found, skipped = contenders(args, folder, threads)
    load = os.getloadavg()[0]
    workers = start(found, skipped, folder, size, threads)
    try:
        taken, meetings = times(args, workers, threads)
        base = taken[workers[0].contender.name]
        results = {}
        for worker in workers:
            mine = taken[worker.contender.name]
            results[worker.contender.name] = described(worker, reference) | {"did": worker.ask("did")} | summary(mine, base)
    finally:
        for worker in workers:
            worker.end()
    loads = [round(load, 2), round(os.getloadavg()[0], 2)]
    measured = {"network": network, "threads": threads, "load": loads, "meetings_us": meetings}
    return measured | {"skipped": skipped, "contenders": results}


def started(args, network: str, threads: int) -> dict:
    """Medians over fresh processes, one after the other, the contenders taking turns."""
    folder, size = args.models / network, NETWORKS[network]
    reference = float_logits(folder, size)
    found, skipped = contenders(args, folder, threads)
    seen: dict[str, list[dict]] = {}
    for _ in range(args.startup):
        for contender in found:
            for worker in start([contender], skipped, folder, size, threads):
                worker.end()
                seen.setdefault(contender.name, []).append(described(worker, reference))
    results = {}
    for name, rounds in seen.items():
        measured = ("load_ms", "first_ms", "baseline_kib", "imported_kib", "peak_kib")
        results[name] = rounds[0] | {key: statistics.median(r[key] for r in rounds) for key in measured}
    return {"network": network, "threads": threads, "skipped": skipped, "contenders": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--hawqc", action="append", required=True, help="[LABEL=]path of the binary; may be repeated")
    parser.add_argument("--hawqc-flags", default="", help="further flags of `hawqc compile`")
    parser.add_argument("--bits", default="8,4", help="values of --bits to compile with")
    parser.add_argument("--networks", default=",".join(NETWORKS))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--contenders", default="", help="peers whose name starts with one of these; all without")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="of one contender in one round")
    parser.add_argument("--startup", type=int, default=0, metavar="N", help="measure starting, N times, instead of running")
    parser.add_argument("--out", type=Path, default=Path("peers"), help="NAME.json and NAME.md are written")
    args = parser.parse_args()
    if unknown := set(args.networks.split(",")) - set(NETWORKS):
        parser.error(f"--networks knows {', '.join(NETWORKS)}, not {', '.join(sorted(unknown))}")
    measure = started if args.startup else timed
    result = {
        "schema": "hawqc.peers",
        "version": 1,
        "date": datetime.date.today().isoformat(),
        "machine": machine(),
        "hawqc": {binary: hashlib.sha256(Path(binary.rpartition("=")[2]).read_bytes()).hexdigest() for binary in args.hawqc},
        "command": {"rounds": args.rounds, "seconds": args.seconds, "startup": args.startup, "flags": args.hawqc_flags},
        "runs": [],
    }
    for network in args.networks.split(","):
        for threads in args.threads.split(","):
            result["runs"].append(measure(args, network, int(threads)))
            report.write(result, args.out)
            print(report.run(result["runs"][-1]), flush=True)


if __name__ == "__main__":
    main()

"""Give a machine changing real work to do while `record_node` records it.

    python -m training.exercise_node --minutes 50 --seed 7

Phases of compiling, hashing, compressing, sorting, serving and idling follow each other; lengths, order and the number
of workers are drawn from the seed. Each phase does real work (a C compiler, sha256, lzma, numpy, an HTTP server).
"""

import hashlib
import http.server
import lzma
import multiprocessing
import os
import random
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer


def compiling(until_s: float, rng: random.Random) -> None:
    """Generate C functions and compile them with optimisation; without a compiler, hash instead."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        hashing(until_s, rng)
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "unit.c")
        while time.monotonic() < until_s:
            bodies = (
                f"double f{i}(double *x,int n){{double s={rng.random()};for(int i=0;i<n;i++)"
                f"for(int j=0;j<{rng.randint(3, 60)};j++)s+=x[i]*j/(1.0+s);return s;}}"
                for i in range(rng.randint(100, 900))
            )
            source.write_text("\n".join(bodies))
            subprocess.run([compiler, "-O2", "-c", str(source), "-o", str(source.with_suffix(".o"))], check=True)


def hashing(until_s: float, rng: random.Random) -> None:
    """sha256 over every file of the Python installation, again and again."""
    files = sorted(Path(os.__file__).parent.rglob("*.py"))
    rng.shuffle(files)
    while time.monotonic() < until_s:
        for path in files:
            hashlib.sha256(path.read_bytes()).digest()
            if time.monotonic() >= until_s:
                return


def compressing(until_s: float, rng: random.Random) -> None:
    """Write a log file of random words to disk and compress it with lzma."""
    words = ["request", "timeout", "node", "pod", "retry", "ok", "warn", "lease"]
    with tempfile.NamedTemporaryFile() as file:
        while time.monotonic() < until_s:
            text = " ".join(rng.choice(words) + str(rng.randint(0, 9999)) for _ in range(200_000)).encode()
            file.write(lzma.compress(text, preset=rng.randint(1, 6)))
            file.flush()
            os.fsync(file.fileno())


def sorting(until_s: float, rng: random.Random) -> None:
    """Hold a few hundred megabytes and sort them: memory grows for the phase and is given back after it."""
    values = np.random.default_rng(rng.randint(0, 1 << 30)).random(rng.randint(20, 120) * 1_000_000)
    while time.monotonic() < until_s:
        np.sort(values[: values.size // 4])
        time.sleep(rng.random() * 2)


class _SilentHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a line for each on the terminal."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def serving(until_s: float, rng: random.Random) -> None:
    """Answer HTTP requests on loopback from a client that comes in bursts."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "payload").write_bytes(os.urandom(200_000))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_SilentHandler, directory=folder))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/payload"
        while time.monotonic() < until_s:
            for _ in range(rng.randint(10, 200)):
                urllib.request.urlopen(url, timeout=10).read()
            time.sleep(rng.random())
        server.shutdown()
        server.server_close()


def idling(until_s: float, rng: random.Random) -> None:
    """Do nothing but wake up now and then."""
    while time.monotonic() < until_s:
        time.sleep(rng.random() * 3)


PHASES = (compiling, hashing, compressing, sorting, serving, idling)


def main(
    minutes: Annotated[float, typer.Option(help="How long to work.")] = 50.0,
    seed: Annotated[int, typer.Option(help="Seed of the order and the lengths of the phases.")] = 7,
) -> None:
    """Run phases of real work, one line for each, until the time is over; other processes go first (nice 5)."""
    os.nice(5)
    rng = random.Random(seed)
    end_s = time.monotonic() + minutes * 60
    while (now_s := time.monotonic()) < end_s:
        phase = rng.choice(PHASES)
        workers = rng.choice((1, 1, 2)) if phase is not idling else 1
        until_s = min(now_s + rng.choice((20, 45, 90, 150)) * rng.uniform(0.7, 1.3), end_s)
        typer.echo(f"{phase.__name__:12} {workers} worker(s) {until_s - now_s:6.0f} s")
        processes = [
            multiprocessing.Process(target=phase, args=(until_s, random.Random(rng.random()))) for _ in range(workers)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()


if __name__ == "__main__":
    typer.run(main)

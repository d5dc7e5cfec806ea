"""Tokenising text that does not repeat: MB/s, the peak memory of all processes, and kill -9.

Generates `--gb` of text (into a folder of files, or with `--single` one file), trains a byte-level
BPE of 32,000 tokens on its first 20 MB, builds the token store of all of it, and prints what it
took. With `--kill` a second build into another cache is killed (the whole process group) half way,
its shards are counted, it is run again, and both digests are compared. With `--workers` fewer or
more processes than cores.

The text: words of one to five syllables, drawn from a vocabulary of 60,000 by Zipf's law (exponent
1.05, the shorter words the likelier), with commas, full stops, paragraphs, and a number or a name
of random letters in every fiftieth place. It comes out of numpy's PCG64 by seed; no stretch of it
comes twice.

    python benchmarks/store.py --gb 1 [--single] [--kill] [--folder DIR] [--out FILE.json]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from compare import write_json

from aludel.data import make_tokenizer

VOCABULARY, TOKENS, SAMPLE, FILE = 60_000, 32_000, 20_000_000, 20_000_000
ONSETS = "b c d f g h k l m n p r s t v w br ch cl dr fl gr pl pr sh sl st th tr".split() + [""]
VOWELS, CODAS = "a e i o u ai ea ou".split(), ["", "n", "r", "s", "l", "t", "m", "nd", "st", "ng"]

BUILD = """
import json, resource, sys, time
from aludel.data import build_store, parse_source, Tokenizer
source, tokenizer, cache, workers = sys.argv[1:5]
begin = time.perf_counter()
store = build_store(
    parse_source(source), "all", Tokenizer.load(tokenizer), cache=cache,
    workers=int(workers) or None, say=lambda line: print(line, file=sys.stderr, flush=True),
)
seconds = time.perf_counter() - begin
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(one.ru_utime + one.ru_stime for one in used)
print(json.dumps({
    "seconds": seconds, "cpu_seconds": cpu, "digest": store.digest, "tokens": len(store.tokens),
    "bytes": store.bytes, "documents": store.documents, "path": str(store.path),
}))
"""


class Text:
    """Endless text, a pure function of the seed."""

    def __init__(self, seed: int):
        draw = np.random.default_rng(0)
        syllables = np.array([a + b + c for a in ONSETS for b in VOWELS for c in CODAS])
        words: dict[str, None] = {}
        while len(words) < VOCABULARY:
            count = min(5, int(draw.geometric(0.55)))
            words["".join(draw.choice(syllables, count))] = None
        ordered = sorted(words, key=len)
        weights = 1 / (np.arange(VOCABULARY) + 2.7) ** 1.05
        self._up_to = np.cumsum(weights / weights.sum())
        self._table = np.array(
            [f" {word}" for word in ordered]
            + [f", {word}" for word in ordered]
            + [f". {word.capitalize()}" for word in ordered]
            + [f".\n\n{word.capitalize()}" for word in ordered],
            dtype=object,
        )
        self._draw = np.random.default_rng(seed)

    def take(self, words: int = 200_000) -> str:
        """The next so many words."""
        word = np.searchsorted(self._up_to, self._draw.random(words))
        joint = np.searchsorted([0.84, 0.91, 0.99], self._draw.random(words))
        chosen = self._table[np.minimum(word, VOCABULARY - 1) + VOCABULARY * joint]
        rare = np.flatnonzero(self._draw.random(words) < 0.02)
        for place, number in zip(rare, self._draw.integers(0, 1 << 40, len(rare)), strict=True):
            chosen[place] = f" {number % 100_000}" if number % 2 else f" {name_of(int(number))}"
        return "".join(chosen)


def name_of(number: int) -> str:
    """A name of random letters."""
    letters = []
    while number:
        number, letter = divmod(number, 26)
        letters.append(chr(ord("a") + letter))
    return "".join(letters[:8]).capitalize()


def generate(folder: Path, size: int, single: bool) -> str:
    """Writes `size` bytes (a little more); the source that reads them."""
    text, written, number = Text(seed=1), 0, 0
    while written < size:
        path = folder / ("text.txt" if single else f"{number:05d}.txt")
        with open(path, "w") as file:
            length = 0
            while written < size and (single or length < FILE):
                more = text.take()
                file.write(more)
                length += len(more)
                written += len(more)
        number += 1
    return f"text:{folder}"


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and all that it has started."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


class Peak:
    """The largest resident memory of a process and its children together, looked at 10 times a s.

    Pages that several share are counted for each.
    """

    def __init__(self, process: psutil.Process):
        self.bytes, self.processes = 0, 0
        self._process, self._over = process, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            each = [resident(one) for one in tree(self._process)]
            if sum(each) > self.bytes:
                self.bytes, self.processes = sum(each), len(each)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def resident(process: psutil.Process) -> int:
    """Resident bytes of a process; 0 where it has ended."""
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def start(source: str, tokenizer: Path, cache: Path, workers: int) -> subprocess.Popen:
    """A build, in a process group of its own."""
    words = [sys.executable, "-c", BUILD, source, str(tokenizer), str(cache), str(workers)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)


def build(source: str, tokenizer: Path, cache: Path, workers: int) -> dict:
    """What a build says, with its peak of memory."""
    process = start(source, tokenizer, cache, workers)
    peak = Peak(psutil.Process(process.pid))
    said = process.communicate()[0]
    peak.stop()
    if process.returncode:
        raise SystemExit(f"the build failed with status {process.returncode}")
    return json.loads(said) | {"peak_bytes": peak.bytes, "processes": peak.processes}


def killed(source: str, tokenizer: Path, cache: Path, workers: int, seconds: float) -> dict:
    """The same build killed after so many seconds, then run again."""
    process = start(source, tokenizer, cache, workers)
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in cache.rglob("stores/*/*.bin")}
    again = build(source, tokenizer, cache, workers)
    now = {path.name: path.stat().st_mtime_ns for path in Path(again["path"]).glob("*.bin")}
    kept = sum(now.get(name) == when for name, when in finished.items())
    return again | {"finished_before": len(finished), "untouched": kept, "shards": len(now) - 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gb", type=float, default=0.1, help="of text (1e9 bytes)")
    parser.add_argument("--single", action="store_true", help="one file, not many of 20 MB")
    parser.add_argument("--kill", action="store_true", help="and a build that is killed half way")
    parser.add_argument("--workers", type=int, default=0, help="processes (0: as many as cores)")
    parser.add_argument("--folder", help="where text and stores are put (a temporary folder)")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    args = parser.parse_args()
    size = int(args.gb * 1e9)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        text = Path(folder) / "text"
        text.mkdir()
        begin = time.perf_counter()
        source = generate(text, size, args.single)
        print(f"generated {size / 1e6:,.0f} MB in {time.perf_counter() - begin:.0f} s", flush=True)
        vocabulary = Path(folder) / "tokenizer.json"
        begin = time.perf_counter()
        with open(min(text.iterdir())) as file:
            sample = [file.read(1 << 20) for _ in range(SAMPLE >> 20)]
        tokenizer = make_tokenizer(f"bpe:{TOKENS}", lambda: iter(sample))
        tokenizer.save(vocabulary)
        print(f"trained {tokenizer.vocab_size:,} tokens in {time.perf_counter() - begin:.0f} s")
        figures = build(source, vocabulary, Path(folder) / "cache", args.workers)
        rate = figures["bytes"] / 1e6 / figures["seconds"]
        rows = [
            ("text", f"{figures['bytes'] / 1e6:,.0f} MB in {figures['documents']:,} files"),
            ("tokens", f"{figures['tokens']:,}"),
            ("time", f"{figures['seconds']:.1f} s, {rate:.2f} MB/s"),
            ("by core", f"{figures['bytes'] / 1e6 / figures['cpu_seconds']:.2f} MB/s of CPU time"),
            (
                "peak memory",
                f"{figures['peak_bytes'] / 1e6:,.0f} MB, {figures['processes']} processes together",
            ),
            ("digest", figures["digest"][:16]),
        ]
        figures |= {"megabytes_per_second": rate, "single": args.single}
        if args.kill:
            half = figures["seconds"] / 2
            again = killed(source, vocabulary, Path(folder) / "other", args.workers, half)
            figures["killed"] = again | {"same_digest": again["digest"] == figures["digest"]}
            rows.append(
                (
                    "killed half way",
                    f"{again['untouched']} of {again['finished_before']} finished shards untouched "
                    f"of {again['shards']}, {again['seconds']:.1f} s more, digest "
                    f"{'the same' if figures['killed']['same_digest'] else 'ANOTHER'}",
                )
            )
        for name, value in rows:
            print(f"{name:16} {value}")
    if args.out:
        write_json(args.out, figures)
        print(args.out)


if __name__ == "__main__":
    main()

"""Coverage-guided fuzzing of one reader, for as long as one likes; what it finds becomes a test of that module.

pip install atheris
python tests/fuzz.py engine --seconds 600 --corpus /tmp/engine
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory


def main() -> None:
    try:
        import atheris
    except ModuleNotFoundError:
        sys.exit("atheris is not installed; run `pip install atheris`.")
    with atheris.instrument_imports(include=["cgd_deploy", "cgd_export", "zipfile", "json", "PIL"]):
        from fuzz_targets import TARGETS, obeys, seeds
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=600, help="[default: 600]")
    parser.add_argument("--corpus", type=Path, help="folder that is begun with and added to [default: a new one]")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as name:
        folder = Path(name)
        corpus = options.corpus or folder / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number, data in enumerate(seeds(options.target, folder)):
            (corpus / f"seed-{number}").write_bytes(data)
        limits = [f"-max_total_time={options.seconds}", "-rss_limit_mb=4096", "-timeout=30", "-max_len=65536"]
        atheris.Setup([sys.argv[0], *limits, str(corpus)], lambda data: obeys(options.target, data, folder))
        atheris.Fuzz()


if __name__ == "__main__":
    main()

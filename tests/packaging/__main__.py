"""Build the wheel and the sdist, and check them in bare environments.

Both are built twice, and the wheel also from the sdist: each time the same bytes come out. With
each Python that is found here the wheel is installed alone, imported, and its command is asked for
help; then once with each extra. Last, pyright looks at the types of the installed wheel.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from tests.support.pythons import find_python

ROOT = Path(__file__).parents[2]
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = {
    "postgresql": "psycopg",
    "mysql": "pymysql",
    "redis": "redis",
    "async": "asgiref",
}
"""What each extra brings."""
TRIED = """
import flask, flask_sqlalchemy, flask_sequence, flask_sequence.testing
for name in flask_sequence.__all__:
    getattr(flask_sequence, name)
app = flask.Flask("bare")
app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
db = flask_sqlalchemy.SQLAlchemy(app)
flask_sequence.Sequence(app)
assert "sequence" in app.cli.commands
told = app.test_cli_runner().invoke(args=["sequence", "--help"])
assert told.exit_code == 0 and "worker" in told.output, told.output
"""


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> None:
    """Run a command, and stop here if it fails."""
    subprocess.run(command, cwd=cwd, env={**os.environ, **env}, check=True)


def build(source: Path, folder: Path, *options: str) -> Path:
    """Build into a folder, as of the last commit."""
    log = ["git", "log", "-1", "--format=%ct"]
    epoch = subprocess.run(log, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    command: list[str | Path] = [sys.executable, "-m", "build", "--outdir", folder]
    run(*command, *options, source, SOURCE_DATE_EPOCH=epoch.strip())
    return folder


def the(folder: Path, pattern: str) -> Path:
    """Give the one file in a folder that has such a name."""
    (found,) = folder.glob(pattern)
    return found


def check_built(scratch: Path) -> Path:
    """Build all of it twice, and the wheel from the sdist; give the folder."""
    first, again = (build(ROOT, scratch / name) for name in ("first", "again"))
    shutil.unpack_archive(the(first, "*.tar.gz"), scratch / "unpacked")
    (unpacked,) = (scratch / "unpacked").iterdir()
    from_sdist = build(unpacked, scratch / "from-sdist", "--wheel")
    for folder, pattern in ((again, "*.whl"), (again, "*.tar.gz"), (from_sdist, "*.whl")):
        same = filecmp.cmp(the(first, pattern), the(folder, pattern), shallow=False)
        assert same, f"{folder.name}/{pattern} differs from the first one"
    names = zipfile.ZipFile(the(first, "*.whl")).namelist()
    assert "flask_sequence/py.typed" in names
    strange = [
        name
        for name in names
        if name.endswith(".pyc") or not name.startswith(("flask_sequence/", "flask_sequence-"))
    ]
    assert strange == [], strange
    run(sys.executable, "-m", "twine", "check", "--strict", *first.iterdir())
    return first


def install(folder: Path, python: str, wanted: str) -> Path:
    """Install into a new environment, and give its interpreter."""
    run(python, "-m", "venv", folder)
    mine = folder / "bin" / "python"
    run(mine, "-m", "pip", "install", "--quiet", wanted)
    return mine


def check_installed(scratch: Path, wheel: Path) -> None:
    """Try the wheel with each Python, with each extra, and its types."""
    for version in PYTHONS:
        python = find_python(version)
        if python is None:
            print(f"not tried: Python {version} is not here", flush=True)
            continue
        mine = install(scratch / version, python, str(wheel))
        run(mine, "-I", "-W", "error", "-c", TRIED, cwd=scratch)
        print(f"Python {version}: installed, imported, asked for help", flush=True)
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert set(EXTRAS) == set(told["optional-dependencies"])
    for extra, package in EXTRAS.items():
        mine = install(scratch / extra, sys.executable, f"{wheel}[{extra}]")
        run(mine, "-I", "-c", f"import flask_sequence, {package}", cwd=scratch)
        print(f"[{extra}]: brings {package}", flush=True)
    typed = install(scratch / "typed", sys.executable, str(wheel))
    path = f"{typed.parent}{os.pathsep}{os.environ['PATH']}"
    pyright = (sys.executable, "-m", "pyright", "--verifytypes", "flask_sequence")
    run(*pyright, "--ignoreexternal", cwd=scratch, PATH=path, VIRTUAL_ENV=str(typed.parent.parent))


def main() -> None:
    """Check all of it, and keep what was built where that is asked for."""
    parser = argparse.ArgumentParser(
        prog="bin/check-dist",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="where to put the wheel and the sdist")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="check-dist-") as name:
        scratch = Path(name)
        built = check_built(scratch)
        check_installed(scratch, the(built, "*.whl"))
        if options.output is not None:
            shutil.copytree(built, options.output, dirs_exist_ok=True)
    print("All is well.")


if __name__ == "__main__":
    main()

"""Stands in for ``make setup`` where the guide's commands are tried: an environment of the packages here."""

import subprocess
import sys
import sysconfig
from pathlib import Path

program = Path(sys.argv[1])
place = program / ".venv"
if not place.exists():
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(place), "platbase": str(place)}))
    # the program first; an installation for development that lies beside the packages is not followed
    (packages / "guide.pth").write_text(f"{program}\n{sysconfig.get_path('purelib')}\n")

    for name in ("prefect", "styleclip"):
        script = (Path(sys.executable).parent / name).read_text().split("\n", 1)[1]
        (place / "bin" / name).write_text(f"#!{place}/bin/python\n{script}")
        (place / "bin" / name).chmod(0o755)

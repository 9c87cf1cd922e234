"""``python -m cgd_deploy``."""

from .cli import main

main()

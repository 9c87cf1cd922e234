"""``python -m cgd_deploy``."""

from .cli.app import main

main()

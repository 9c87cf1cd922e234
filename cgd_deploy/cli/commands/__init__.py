"""The commands, each a function of its options; ``cgd_deploy.cli.app`` gives them their names."""

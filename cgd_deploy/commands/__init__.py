"""The commands, each a function of its options; ``cgd_deploy.cli`` gives them their names."""

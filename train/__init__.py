"""Training of CGD models: labelled pictures -> checkpoint. Start at ``trainer.train``, with ``config.TrainConfig``."""

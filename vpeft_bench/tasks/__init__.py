"""Tasks: one LightningModule each. A task knows neither methods nor data sets."""

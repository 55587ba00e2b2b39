"""Parts that can be left out: one folder a feature, each with a record `FEATURE` in its `feature.py`."""

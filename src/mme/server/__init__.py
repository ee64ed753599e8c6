"""The embedded model server: DJL Serving's Python mode and the multi-model container contract."""

"""The door to whoever collects traces: spans become OTLP, which a thread of its own sends away."""

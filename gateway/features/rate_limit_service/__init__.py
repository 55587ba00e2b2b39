"""Envoy's rate limit service over gRPC, in front of a gateway's holds."""

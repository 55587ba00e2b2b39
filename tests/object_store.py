"""A real server that speaks S3, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

REGION = "us-east-1"
KEYS = {
    "AWS_ACCESS_KEY_ID": "an-id",
    "AWS_SECRET_ACCESS_KEY": "a-key",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@contextmanager
def serving() -> Iterator[str]:
    """Its host and port."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()


def folder(server: str, bucket: str, name: str) -> str:
    """The address of a folder in a bucket that is made for it."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=f"http://{server}", region_name=REGION,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )  # fmt: skip
    client.create_bucket(Bucket=bucket)
    return f"s3://{bucket}/{name}?endpoint_override={server}&scheme=http&region={REGION}"

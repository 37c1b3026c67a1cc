"""What gRPC needs, made of `proto/` when it is first imported; grpcio-tools makes it."""

import atexit
import importlib
import os
import pathlib
import shutil
import sys
import tempfile

from grpc_tools import protoc

PROTO = pathlib.Path(os.environ.get("GABION_PROTO", pathlib.Path(__file__).parents[4] / "proto"))
NAMES = ["cluster", "errors", "io", "volumes"]


def make():
    into = tempfile.mkdtemp(prefix="gabion-stubs-")
    atexit.register(shutil.rmtree, into, ignore_errors=True)
    files = [f"gabion/v1/{name}.proto" for name in NAMES]
    failed = protoc.main(["protoc", f"-I{PROTO}", f"--python_out={into}", f"--grpc_python_out={into}", *files])
    if failed:
        raise ImportError(f"no stubs can be made of {PROTO}; $GABION_PROTO says where proto/ is")
    sys.path.insert(0, into)


make()
cluster_pb2 = importlib.import_module("gabion.v1.cluster_pb2")
cluster_pb2_grpc = importlib.import_module("gabion.v1.cluster_pb2_grpc")
errors_pb2 = importlib.import_module("gabion.v1.errors_pb2")
volumes_pb2 = importlib.import_module("gabion.v1.volumes_pb2")
volumes_pb2_grpc = importlib.import_module("gabion.v1.volumes_pb2_grpc")

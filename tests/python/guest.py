"""A guest that knows only proto/: makes a volume, writes, flushes, reads, and asks for too much."""

import queue
import sys

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from gabion.v1 import cluster_pb2, cluster_pb2_grpc
from gabion.v1 import errors_pb2
from gabion.v1 import io_pb2, io_pb2_grpc
from gabion.v1 import volumes_pb2, volumes_pb2_grpc

SIZE = 64 << 20
TIMEOUT = 30


class Guest:
    """One stream: requests go into a queue, answers come by id."""

    def __init__(self, channel, volume):
        self.requests = queue.Queue()
        self.next_id = 1
        self.answers = io_pb2_grpc.IoStub(channel).Attach(iter(self.requests.get, None), timeout=TIMEOUT)
        opened = self.call(open=io_pb2.OpenVolume(volume=volume))
        assert opened.WhichOneof("result") == "opened", opened
        self.size = opened.opened.size_bytes

    def send(self, **op):
        number = self.next_id
        self.next_id += 1
        self.requests.put(io_pb2.IoRequest(id=number, **op))
        return number

    def call(self, **op):
        number = self.send(**op)
        answer = next(self.answers)
        assert answer.id == number, answer
        return answer

    def close(self):
        self.requests.put(None)


def detail(error):
    """The typed error of a failed call."""
    found = dict(error.trailing_metadata())["gabion-error-bin"]
    return errors_pb2.ErrorDetail.FromString(found)


def refused(call, code, status):
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() == status, error
        told = detail(error)
        assert told.code == code, told
        assert told.what, told
        return
    raise AssertionError("it was not refused")


def reflected(channel):
    """What a program finds that has no proto files at all."""
    database = ProtoReflectionDescriptorDatabase(channel)
    names = set(database.get_services())
    ours = {"gabion.v1.Volumes", "gabion.v1.Io", "gabion.v1.Cluster"}
    assert ours <= names, names
    pool = DescriptorPool(database)
    for name in ours:
        assert pool.FindServiceByName(name).methods, name
    create = pool.FindServiceByName("gabion.v1.Volumes").FindMethodByName("Create")
    fields = {field.name for field in create.input_type.fields}
    assert {"name", "size_bytes", "rf"} <= fields, fields


def healthy(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ["", "gabion.v1.Volumes", "gabion.v1.Io", "gabion.v1.Cluster"]:
        told = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)
        assert told.status == health_pb2.HealthCheckResponse.SERVING, (service, told)


def too_much(channel):
    """A message that is no request ends its stream, with a typed error, and nobody else's."""
    guest = Guest(channel, "py")
    largest = guest.call(write=io_pb2.WriteOp(offset=0, data=bytes(4 << 20)))
    assert largest.WhichOneof("result") == "done", largest
    over = guest.call(write=io_pb2.WriteOp(offset=0, data=bytes((4 << 20) + 4096)))
    assert over.error.code == errors_pb2.ERROR_CODE_TOO_LARGE, over
    refused(
        lambda: guest.call(write=io_pb2.WriteOp(offset=0, data=bytes(8 << 20))),
        errors_pb2.ERROR_CODE_TOO_LARGE,
        grpc.StatusCode.INVALID_ARGUMENT,
    )


def main(addresses):
    channel = grpc.insecure_channel(addresses[0])
    reflected(channel)
    healthy(channel)
    volumes = volumes_pb2_grpc.VolumesStub(channel)
    made = volumes.Create(volumes_pb2.CreateVolumeRequest(name="py", size_bytes=SIZE, rf=2), timeout=TIMEOUT)
    assert made.volume.size_bytes == SIZE, made
    refused(
        lambda: volumes.Create(volumes_pb2.CreateVolumeRequest(name="py", size_bytes=SIZE), timeout=TIMEOUT),
        errors_pb2.ERROR_CODE_NAME_TAKEN,
        grpc.StatusCode.ALREADY_EXISTS,
    )
    refused(
        lambda: volumes.Get(volumes_pb2.GetVolumeRequest(name="nobody"), timeout=TIMEOUT),
        errors_pb2.ERROR_CODE_NO_VOLUME,
        grpc.StatusCode.NOT_FOUND,
    )

    guest = Guest(channel, "py")
    assert guest.size == SIZE
    pieces = {offset: bytes([offset >> 12 & 255]) * 65536 for offset in range(0, 8 << 20, 65536)}
    waiting = {guest.send(write=io_pb2.WriteOp(offset=offset, data=data)) for offset, data in pieces.items()}
    while waiting:
        answer = next(guest.answers)
        assert answer.WhichOneof("result") == "done", answer
        waiting.remove(answer.id)
    assert guest.call(flush=io_pb2.FlushOp()).WhichOneof("result") == "done"
    for offset, data in pieces.items():
        assert guest.call(read=io_pb2.ReadOp(offset=offset, length=65536)).read.data == data
    assert guest.call(zero=io_pb2.ZeroOp(offset=0, length=8192)).WhichOneof("result") == "done"
    assert guest.call(read=io_pb2.ReadOp(offset=0, length=8192)).read.data == bytes(8192)

    past = guest.call(read=io_pb2.ReadOp(offset=SIZE, length=4096))
    assert past.error.code == errors_pb2.ERROR_CODE_OUT_OF_RANGE, past
    assert past.error.what and past.error.next, past
    odd = guest.call(read=io_pb2.ReadOp(offset=1, length=4096))
    assert odd.error.code == errors_pb2.ERROR_CODE_MISALIGNED, odd
    assert guest.call(read=io_pb2.ReadOp(offset=65536, length=65536)).read.data == pieces[65536]

    other = grpc.insecure_channel(addresses[1])
    second = Guest(other, "py")
    assert second.call(read=io_pb2.ReadOp(offset=1 << 20, length=65536)).read.data == pieces[1 << 20]
    too_much(other)
    assert second.call(flush=io_pb2.FlushOp()).WhichOneof("result") == "done"
    second.close()
    guest.close()
    status = cluster_pb2_grpc.ClusterStub(other).Status(cluster_pb2.StatusRequest(), timeout=TIMEOUT)
    assert len(status.nodes) == len(addresses), status
    print("all is well")


if __name__ == "__main__":
    main(sys.argv[1:])

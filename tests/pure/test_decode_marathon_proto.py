"""The committed module says what marathon.proto says: deploy/protoc was run after a change."""

import re
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from minuteman.decode import marathon_pb2 as pb

PROTO = Path(pb.__file__).with_name("marathon.proto")
FIELD = re.compile(r"(?P<label>optional|repeated) (?P<type>\w+) (?P<name>\w+) = (?P<number>\d+);")
VALUE = re.compile(r"(?P<name>[A-Z_]+) = (?P<number>\d+);")
BLOCK = re.compile(r"(message|enum) (?P<name>\w+) \{")

SCALARS = {
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_BOOL: "bool",
}


def written() -> Iterator[str]:
    """Each field and value of the file: `Port optional uint32 number = 1`."""
    outer: list[str] = []
    for line in PROTO.read_text().splitlines():
        code = line.partition("//")[0].strip()
        if block := BLOCK.fullmatch(code):
            outer.append(block["name"])
        elif code == "}":
            outer.pop()
        elif field := FIELD.fullmatch(code):
            yield f"{'.'.join(outer)} {field[0].rstrip(';')}"
        elif value := VALUE.fullmatch(code):
            yield f"{'.'.join(outer)} {value[0].rstrip(';')}"
        else:
            assert not code or code.startswith(("syntax", "package")), line


def generated() -> Iterator[str]:
    for message in pb.DESCRIPTOR.message_types_by_name.values():
        yield from of_message(message, message.name)


def of_message(message: Descriptor, name: str) -> Iterator[str]:
    for field in message.fields:
        label = "repeated" if field.is_repeated else "optional"
        yield f"{name} {label} {type_of(field)} {field.name} = {field.number}"
    for enum in message.enum_types:
        yield from of_enum(enum, f"{name}.{enum.name}")
    for nested in message.nested_types:
        yield from of_message(nested, f"{name}.{nested.name}")


def of_enum(enum: EnumDescriptor, name: str) -> Iterator[str]:
    for value in enum.values:
        yield f"{name} {value.name} = {value.number}"


def type_of(field: FieldDescriptor) -> str:
    named = field.message_type or field.enum_type
    return named.name if named else SCALARS[field.type]


def test_generated_module_matches_the_proto() -> None:
    assert sorted(generated()) == sorted(written())
    assert pb.DESCRIPTOR.package == "minuteman.decode.marathon"


def test_numbers_of_marathon_and_mesos() -> None:
    """Those whose change no other test with typed octets would notice."""
    assert {
        "ServiceDefinition repeated uint32 ports = 6",
        "ServiceDefinition repeated Label labels = 20",
        "ServiceDefinition optional IpAddress ip_address_before_1_5 = 25",
        "IpAddress optional DiscoveryInfo discovery_info = 3",
        "IpAddress.DiscoveryInfo repeated Port ports = 1",
        "HealthCheckDefinition.Protocol MESOS_HTTPS = 5",
        "HealthCheckDefinition.Protocol MESOS_TCP = 6",
        "ExtendedContainerInfo.DockerInfo.Network NONE = 3",
        "TaskStatus optional ContainerStatus container_status = 13",
        "ContainerStatus repeated NetworkInfo network_infos = 1",
        "NetworkInfo repeated IPAddress ip_addresses = 5",
        "NetworkInfo.IPAddress optional bytes ip_address = 2",
    } <= set(generated())

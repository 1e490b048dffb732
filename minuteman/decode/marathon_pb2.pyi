from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ServiceDefinition(_message.Message):
    __slots__ = ("id", "instances", "ports", "version", "health_checks", "container", "labels", "ip_address_before_1_5", "port_definitions", "networks")
    ID_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    HEALTH_CHECKS_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    IP_ADDRESS_BEFORE_1_5_FIELD_NUMBER: _ClassVar[int]
    PORT_DEFINITIONS_FIELD_NUMBER: _ClassVar[int]
    NETWORKS_FIELD_NUMBER: _ClassVar[int]
    id: bytes
    instances: int
    ports: _containers.RepeatedScalarFieldContainer[int]
    version: bytes
    health_checks: _containers.RepeatedCompositeFieldContainer[HealthCheckDefinition]
    container: ExtendedContainerInfo
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    ip_address_before_1_5: IpAddress
    port_definitions: _containers.RepeatedCompositeFieldContainer[Port]
    networks: _containers.RepeatedCompositeFieldContainer[NetworkDefinition]
    def __init__(self, id: _Optional[bytes] = ..., instances: _Optional[int] = ..., ports: _Optional[_Iterable[int]] = ..., version: _Optional[bytes] = ..., health_checks: _Optional[_Iterable[_Union[HealthCheckDefinition, _Mapping]]] = ..., container: _Optional[_Union[ExtendedContainerInfo, _Mapping]] = ..., labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ..., ip_address_before_1_5: _Optional[_Union[IpAddress, _Mapping]] = ..., port_definitions: _Optional[_Iterable[_Union[Port, _Mapping]]] = ..., networks: _Optional[_Iterable[_Union[NetworkDefinition, _Mapping]]] = ...) -> None: ...

class HealthCheckDefinition(_message.Message):
    __slots__ = ("protocol",)
    class Protocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        HTTP: _ClassVar[HealthCheckDefinition.Protocol]
        TCP: _ClassVar[HealthCheckDefinition.Protocol]
        COMMAND: _ClassVar[HealthCheckDefinition.Protocol]
        HTTPS: _ClassVar[HealthCheckDefinition.Protocol]
        MESOS_HTTP: _ClassVar[HealthCheckDefinition.Protocol]
        MESOS_HTTPS: _ClassVar[HealthCheckDefinition.Protocol]
        MESOS_TCP: _ClassVar[HealthCheckDefinition.Protocol]
    HTTP: HealthCheckDefinition.Protocol
    TCP: HealthCheckDefinition.Protocol
    COMMAND: HealthCheckDefinition.Protocol
    HTTPS: HealthCheckDefinition.Protocol
    MESOS_HTTP: HealthCheckDefinition.Protocol
    MESOS_HTTPS: HealthCheckDefinition.Protocol
    MESOS_TCP: HealthCheckDefinition.Protocol
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    protocol: HealthCheckDefinition.Protocol
    def __init__(self, protocol: _Optional[_Union[HealthCheckDefinition.Protocol, str]] = ...) -> None: ...

class ExtendedContainerInfo(_message.Message):
    __slots__ = ("docker", "port_mappings")
    class DockerInfo(_message.Message):
        __slots__ = ("network_before_1_5", "port_mappings_before_1_5")
        class Network(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
            __slots__ = ()
            HOST: _ClassVar[ExtendedContainerInfo.DockerInfo.Network]
            BRIDGE: _ClassVar[ExtendedContainerInfo.DockerInfo.Network]
            NONE: _ClassVar[ExtendedContainerInfo.DockerInfo.Network]
            USER: _ClassVar[ExtendedContainerInfo.DockerInfo.Network]
        HOST: ExtendedContainerInfo.DockerInfo.Network
        BRIDGE: ExtendedContainerInfo.DockerInfo.Network
        NONE: ExtendedContainerInfo.DockerInfo.Network
        USER: ExtendedContainerInfo.DockerInfo.Network
        NETWORK_BEFORE_1_5_FIELD_NUMBER: _ClassVar[int]
        PORT_MAPPINGS_BEFORE_1_5_FIELD_NUMBER: _ClassVar[int]
        network_before_1_5: ExtendedContainerInfo.DockerInfo.Network
        port_mappings_before_1_5: _containers.RepeatedCompositeFieldContainer[PortMapping]
        def __init__(self, network_before_1_5: _Optional[_Union[ExtendedContainerInfo.DockerInfo.Network, str]] = ..., port_mappings_before_1_5: _Optional[_Iterable[_Union[PortMapping, _Mapping]]] = ...) -> None: ...
    DOCKER_FIELD_NUMBER: _ClassVar[int]
    PORT_MAPPINGS_FIELD_NUMBER: _ClassVar[int]
    docker: ExtendedContainerInfo.DockerInfo
    port_mappings: _containers.RepeatedCompositeFieldContainer[PortMapping]
    def __init__(self, docker: _Optional[_Union[ExtendedContainerInfo.DockerInfo, _Mapping]] = ..., port_mappings: _Optional[_Iterable[_Union[PortMapping, _Mapping]]] = ...) -> None: ...

class PortMapping(_message.Message):
    __slots__ = ("host_port", "container_port", "protocol", "name", "labels")
    HOST_PORT_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_PORT_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    host_port: int
    container_port: int
    protocol: bytes
    name: bytes
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    def __init__(self, host_port: _Optional[int] = ..., container_port: _Optional[int] = ..., protocol: _Optional[bytes] = ..., name: _Optional[bytes] = ..., labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ...) -> None: ...

class NetworkDefinition(_message.Message):
    __slots__ = ("mode",)
    class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[NetworkDefinition.Mode]
        HOST: _ClassVar[NetworkDefinition.Mode]
        CONTAINER: _ClassVar[NetworkDefinition.Mode]
        BRIDGE: _ClassVar[NetworkDefinition.Mode]
    UNKNOWN: NetworkDefinition.Mode
    HOST: NetworkDefinition.Mode
    CONTAINER: NetworkDefinition.Mode
    BRIDGE: NetworkDefinition.Mode
    MODE_FIELD_NUMBER: _ClassVar[int]
    mode: NetworkDefinition.Mode
    def __init__(self, mode: _Optional[_Union[NetworkDefinition.Mode, str]] = ...) -> None: ...

class IpAddress(_message.Message):
    __slots__ = ("discovery_info",)
    class DiscoveryInfo(_message.Message):
        __slots__ = ("ports",)
        PORTS_FIELD_NUMBER: _ClassVar[int]
        ports: _containers.RepeatedCompositeFieldContainer[Port]
        def __init__(self, ports: _Optional[_Iterable[_Union[Port, _Mapping]]] = ...) -> None: ...
    DISCOVERY_INFO_FIELD_NUMBER: _ClassVar[int]
    discovery_info: IpAddress.DiscoveryInfo
    def __init__(self, discovery_info: _Optional[_Union[IpAddress.DiscoveryInfo, _Mapping]] = ...) -> None: ...

class StoreEntry(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class StorageVersion(_message.Message):
    __slots__ = ("major", "minor", "patch")
    MAJOR_FIELD_NUMBER: _ClassVar[int]
    MINOR_FIELD_NUMBER: _ClassVar[int]
    PATCH_FIELD_NUMBER: _ClassVar[int]
    major: int
    minor: int
    patch: int
    def __init__(self, major: _Optional[int] = ..., minor: _Optional[int] = ..., patch: _Optional[int] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("key", "value")
    KEY_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    key: bytes
    value: bytes
    def __init__(self, key: _Optional[bytes] = ..., value: _Optional[bytes] = ...) -> None: ...

class Labels(_message.Message):
    __slots__ = ("labels",)
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    def __init__(self, labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ...) -> None: ...

class Port(_message.Message):
    __slots__ = ("number", "name", "protocol", "labels")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    number: int
    name: bytes
    protocol: bytes
    labels: Labels
    def __init__(self, number: _Optional[int] = ..., name: _Optional[bytes] = ..., protocol: _Optional[bytes] = ..., labels: _Optional[_Union[Labels, _Mapping]] = ...) -> None: ...

class FrameworkID(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: bytes
    def __init__(self, value: _Optional[bytes] = ...) -> None: ...

class TaskStatus(_message.Message):
    __slots__ = ("healthy", "container_status")
    HEALTHY_FIELD_NUMBER: _ClassVar[int]
    CONTAINER_STATUS_FIELD_NUMBER: _ClassVar[int]
    healthy: bool
    container_status: ContainerStatus
    def __init__(self, healthy: _Optional[bool] = ..., container_status: _Optional[_Union[ContainerStatus, _Mapping]] = ...) -> None: ...

class ContainerStatus(_message.Message):
    __slots__ = ("network_infos",)
    NETWORK_INFOS_FIELD_NUMBER: _ClassVar[int]
    network_infos: _containers.RepeatedCompositeFieldContainer[NetworkInfo]
    def __init__(self, network_infos: _Optional[_Iterable[_Union[NetworkInfo, _Mapping]]] = ...) -> None: ...

class NetworkInfo(_message.Message):
    __slots__ = ("ip_addresses",)
    class IPAddress(_message.Message):
        __slots__ = ("ip_address",)
        IP_ADDRESS_FIELD_NUMBER: _ClassVar[int]
        ip_address: bytes
        def __init__(self, ip_address: _Optional[bytes] = ...) -> None: ...
    IP_ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    ip_addresses: _containers.RepeatedCompositeFieldContainer[NetworkInfo.IPAddress]
    def __init__(self, ip_addresses: _Optional[_Iterable[_Union[NetworkInfo.IPAddress, _Mapping]]] = ...) -> None: ...
